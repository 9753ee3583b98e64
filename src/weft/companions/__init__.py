"""Small modules trained beside the factors. One file a companion; each registers its code for its type.

| companion | what changes | paper |
|---|---|---|
| `prefix` | what the output projection of an attention block reads | Li and Liang, 2021 |
| `bottleneck` | the output of an attention or feed-forward block | Houlsby et al., 2019 |
| `prompt` | what the input embedding answers for ids beyond its table | Lester et al., 2021 |
"""

from weft.companions import bottleneck, prefix, prompt
from weft.companions.part import part_for

__all__ = ["bottleneck", "part_for", "prefix", "prompt"]
