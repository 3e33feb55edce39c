"""The world model and its discrete regression. Knows nothing of files, planning or training."""

from tdmpc2.model.checksum import model_checksum, world_checksum
from tdmpc2.model.discrete import symexp, symlog, two_hot, two_hot_cross_entropy, two_hot_inverse
from tdmpc2.model.sizes import MODEL_SIZES, ModelDims, model_bytes, model_dims, published_size, update_bytes
from tdmpc2.model.world_model import ACTING_PARTS, ALL_PARTS, PRIOR_PARTS, Part, PolicySample, WorldModel, of_parts

__all__ = [
    "ACTING_PARTS",
    "ALL_PARTS",
    "MODEL_SIZES",
    "PRIOR_PARTS",
    "ModelDims",
    "Part",
    "PolicySample",
    "WorldModel",
    "model_bytes",
    "model_checksum",
    "model_dims",
    "of_parts",
    "published_size",
    "symexp",
    "symlog",
    "two_hot",
    "two_hot_cross_entropy",
    "two_hot_inverse",
    "update_bytes",
    "world_checksum",
]
