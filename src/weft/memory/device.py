"""What memory a device has to give."""

import psutil
import torch


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free now; None for a kind of device that cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    return None
