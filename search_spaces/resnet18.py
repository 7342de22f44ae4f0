"""How to train torchvision's ResNet-18, from its ImageNet weights or from scratch. A CPU core takes 90 s an epoch."""

# The small-image stem keeps the full resolution: sixteen times the work of the ImageNet stem.
GPU_ONLY = {"stem": ["small"]}


def space(trial):
    """Returns one configuration; pretrained networks get smaller learning rates."""
    pretrained = trial.suggest_categorical("pretrained", [True, False])
    return {
        "architecture": "resnet18",
        "pretrained": pretrained,
        "stem": trial.suggest_categorical("stem", ["imagenet", "small"]),
        "optimizer": "adamw",
        "learning_rate": (
            trial.suggest_float("learning_rate_pretrained", 1e-4, 3e-3, log=True)
            if pretrained
            else trial.suggest_float("learning_rate_scratch", 1e-4, 2e-2, log=True)
        ),
        "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [64, 128, 256]),
        "schedule": trial.suggest_categorical("schedule", ["onecycle", "cosine", "plateau"]),
        "label_smoothing": trial.suggest_float("label_smoothing", 0.0, 0.1),
        "crop_padding": trial.suggest_int("crop_padding", 0, 2),
        "flip": True,
        "ema_decay": trial.suggest_categorical("ema_decay", [0.0, 0.99]),
    }
