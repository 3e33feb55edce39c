"""The programs: each module has a `main` that only wires packages together; `tdmpc2.launch` starts them."""
