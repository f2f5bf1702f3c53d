"""What two runs of a loop are compared by: all files, without what a clock decides."""

from benchmarks.selftraining import files_of_loop

__all__ = ["files_of_loop"]
