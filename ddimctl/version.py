"""The version, in a room of its own: whatever needs it needs nothing else."""

__version__ = "0.1.0"
