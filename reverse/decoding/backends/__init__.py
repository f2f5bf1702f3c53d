"""Runtimes that decode sequences: the module `protocol`, and backends on transformers and on CUDA graphs."""
