"""Low-rank adapters: which they are, where their parts lie, their files, their arithmetic."""
