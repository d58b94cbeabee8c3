"""Pictures of lowered graphs."""
