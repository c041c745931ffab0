"""What a run will cost, before it runs: parameters, memory, FLOPs, days, sampling and encoding."""
