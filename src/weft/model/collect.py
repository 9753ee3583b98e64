"""The attached adapter as a value: a copy that later training does not change."""

from torch import Tensor, nn

from weft.adapter import Adapter, Layout
from weft.linalg import LowRank
from weft.model.engines import reshard, whole
from weft.model.modules import adapted_modules
from weft.model.state import require_adapter, state_of
from weft.nn import CompanionPart, Factors, LoRALayer, ReplacedModule, TrainedBias


def collect(model: nn.Module, name: str = "default") -> Adapter:
    """The adapter `name` of `model` as a value, its tensors copied to the CPU.

    Of a model that is sharded over processes, each of them gets the whole adapter, and each has to call this.

    Raises:
        StateError: nothing is attached under this name.
    """
    record = require_adapter(state_of(model), name)
    reshard(model)
    factors: dict[str, LowRank] = {}
    layouts: dict[str, Layout] = {}
    tensors: dict[str, Tensor] = {}
    magnitudes: dict[str, Tensor] = {}
    companions: dict[str, Tensor] = {}
    copies: dict[int, tuple[LowRank, Tensor | None]] = {}  # what two modules share stays shared
    for path, module in adapted_modules(model):
        if name not in module.adapters:
            continue
        part = module.adapters[name]
        if isinstance(module, LoRALayer) and isinstance(part, Factors):
            key = id(part.lora_B)
            if key not in copies:
                value = part.low_rank(_copy)
                magnitude = None if part.magnitude is None else _copy(part.magnitude)
                copies[key] = value, magnitude
            factors[path], magnitude = copies[key]
            if magnitude is not None:
                magnitudes[path] = magnitude
            layouts[path] = module.layout(module)
            if part.bias is not None:
                tensors[f"{path}.bias"] = _copy(part.bias)
        elif isinstance(part, CompanionPart):
            companions |= {f"{path}.{key}": _copy(value) for key, value in part.state_dict().items()}
        elif isinstance(module, ReplacedModule):
            tensors |= {f"{path}.{key}": _copy(value) for key, value in part.state_dict().items()}
        elif isinstance(part, TrainedBias):
            tensors[f"{path}.bias"] = _copy(part.bias)
    return Adapter(record.config, factors, layouts, tensors, record.base, record.provenance, magnitudes, companions)


def _copy(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).to("cpu", copy=True).contiguous()
