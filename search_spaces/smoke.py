"""Seconds, not minutes: a tiny network, to see that everything works. Use it with `--train-images 1000 --epochs 2`."""


def space(trial):
    """Returns one configuration of a network of 5,000 parameters."""
    return {
        "architecture": "resnet8",
        "width": 4,
        "image_size": 8,
        "batch_size": 128,
        "schedule": "constant",
        "learning_rate": trial.suggest_float("learning_rate", 1e-3, 1.0, log=True),
        "momentum": trial.suggest_float("momentum", 0.5, 0.95),
    }
