"""Questions to a vault and its answers as protocol buffers: what may cross the border, and nothing else."""
