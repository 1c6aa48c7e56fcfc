"""Checkpoints: a file per layer, keyed by global names, without pickle; a save is there whole or not at all.

A run saves with `saver.CheckpointSaver`, a program with `saver.save_checkpoint` (or, from one process and piece by
piece, `save.save_in_pieces`); open with `load.open_checkpoint` and fill with `load.load_checkpoint`.
"""
