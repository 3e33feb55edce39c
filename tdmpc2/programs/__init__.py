"""The programs: each module has a `main` that only wires rooms together; `tdmpc2.launch` starts them."""
