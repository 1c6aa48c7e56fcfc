"""The one door to megatron-core: only this package imports `megatron`.

parallel.py (schedules, DDP, groups) and datasets.py (indexed data, blends) re-export what the project uses;
on_cpu.py makes the former run without a GPU; compat.py holds each private touch; version.py refuses an unknown
release. Submodules are imported by name, so that a tool which reads data does not load the schedules.
"""
