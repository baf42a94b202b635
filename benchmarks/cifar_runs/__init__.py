"""The runs of `benchmarks/cifar.py`: data, models, training, and what is measured of a step."""
