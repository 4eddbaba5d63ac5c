"""K adapters trained together inside one frozen base model."""

from objectives.bank.bank import Bank, Progress
from objectives.bank.checkpoint import CheckpointError, restore_checkpoint, save_checkpoint
from objectives.bank.export import export_adapter

__all__ = [
    "Bank",
    "CheckpointError",
    "Progress",
    "export_adapter",
    "restore_checkpoint",
    "save_checkpoint",
]
