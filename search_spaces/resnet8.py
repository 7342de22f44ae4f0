"""How to train one ResNet-8: its width and learning rate, and little else. About half a minute an epoch on a core."""

# What a CPU cannot train in reasonable time.
GPU_ONLY = {"width": [64, 128]}


def space(trial):
    """Returns one configuration: SGD with the one-cycle schedule."""
    return {
        "architecture": "resnet8",
        "width": trial.suggest_categorical("width", [8, 16, 32, 64, 128]),
        "schedule": "onecycle",
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 1.0, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-5, 2e-3, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.1),
        "crop_padding": trial.suggest_int("crop_padding", 0, 2),
        "flip": True,
        "erase": trial.suggest_float("erase", 0.0, 0.4),
        "ema_decay": 0.99,
    }
