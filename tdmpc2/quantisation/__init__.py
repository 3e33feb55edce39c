"""Quantisation of trained students for deployment: tensors to stored tensors and back."""

from tdmpc2.quantisation.codecs import Stored
from tdmpc2.quantisation.schemes import (
    FLOAT32,
    SCHEMES,
    Quantised,
    Scheme,
    TensorReport,
    prior_alone,
    quantise,
    quantise_by,
    scheme_named,
    storage_scheme,
    without_target,
)

__all__ = [
    "FLOAT32",
    "SCHEMES",
    "Quantised",
    "Scheme",
    "Stored",
    "TensorReport",
    "prior_alone",
    "quantise",
    "quantise_by",
    "scheme_named",
    "storage_scheme",
    "without_target",
]
