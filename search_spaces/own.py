"""How to train a network of one's own: `--model FILE.py`. What it costs is up to the network."""


def space(trial):
    """Returns one configuration; `own` is the network of the file."""
    return {
        "architecture": "own",
        "optimizer": "adamw",
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 2e-2, log=True),
        "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [32, 64, 128]),
        "schedule": trial.suggest_categorical("schedule", ["onecycle", "cosine"]),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.1),
        "crop_padding": trial.suggest_int("crop_padding", 0, 2),
        "flip": trial.suggest_categorical("flip", [True, False]),
        "ema_decay": trial.suggest_categorical("ema_decay", [0.0, 0.99]),
    }
