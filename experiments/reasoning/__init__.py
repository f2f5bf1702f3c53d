"""Models of the reasoning world: trained in minutes on one GPU, and measured with every mode.

python -m experiments.reasoning --family qwen --out out/reasoning/qwen-0
"""
