"""Makes this folder importable, so that every tier can use its shared samples."""
