"""The default space: which network, how it learns, how it is regularised and what is done to its images.

On a CPU every network of it trains an epoch of 55,000 images in half a minute to a minute and a half on one core.
"""

# Networks as "<architecture>-<width>"; a joint choice, because what a width costs depends on the depth.
CPU_NETWORKS = ["resnet8-16", "resnet14-16", "resnet20-16"]
GPU_NETWORKS = ["resnet8-64", "resnet14-64", "resnet20-32", "resnet20-64", "resnet18"]

# What a CPU cannot train in reasonable time; the search leaves it out there and says so. (ResNet-18 with the ImageNet
# stem can be trained, but took a fifth of a search and ended 4 points behind.)
GPU_ONLY = {"network": GPU_NETWORKS}

# Tried before anything else: what did best on Fashion-MNIST in the time of 6 epochs (tests/benchmarks/tricks.py), what
# did best there twice as long (tests/benchmarks/README.md), and what `TrainConfig` has by default.
MUON = {
    "optimizer": "muon",
    "learning_rate_muon": 0.3,
    "momentum_muon": 0.95,
    "weight_decay_muon": 2e-3,
    "batch_size": 128,
    "schedule": "onecycle",
    "label_smoothing": 0.0,
    "crop_padding": 0,
    "flip": True,
    "erase": 0.0,
    "ema_decay": 0.0,
}
REGULARISED = {"batch_size": 64, "label_smoothing": 0.1, "crop_padding": 1, "erase": 0.3, "ema_decay": 0.99}
FIRST = [
    {"network": "resnet14-16", **MUON},
    {"network": "resnet20-16", **MUON, **REGULARISED},
    {
        "network": "resnet14-16",
        "optimizer": "sgd",
        "learning_rate_sgd": 0.1,
        "momentum": 0.9,
        "weight_decay_sgd": 5e-4,
        "batch_size": 128,
        "schedule": "onecycle",
        "label_smoothing": 0.0,
        "crop_padding": 0,
        "flip": False,
        "erase": 0.0,
        "ema_decay": 0.0,
    },
]


def space(trial):
    """Returns one configuration; hyperparameters that it leaves out take the defaults of `TrainConfig`."""
    architecture, _, width = trial.suggest_categorical("network", CPU_NETWORKS + GPU_NETWORKS).partition("-")
    config = {"architecture": architecture}
    if width:
        config["width"] = int(width)
    else:
        config["pretrained"] = trial.suggest_categorical("pretrained", [True, False])
        config["stem"] = trial.suggest_categorical("stem", ["imagenet", "small"])

    config["optimizer"] = trial.suggest_categorical("optimizer", ["muon", "sgd", "adamw"])
    if config["optimizer"] == "muon":
        config["learning_rate"] = trial.suggest_float("learning_rate_muon", 0.05, 1.0, log=True)
        config["momentum"] = trial.suggest_float("momentum_muon", 0.85, 0.98)
        config["weight_decay"] = trial.suggest_float("weight_decay_muon", 1e-4, 1e-2, log=True)
    elif config["optimizer"] == "sgd":
        config["learning_rate"] = trial.suggest_float("learning_rate_sgd", 0.02, 2.0, log=True)
        config["momentum"] = trial.suggest_float("momentum", 0.8, 0.95)
        config["weight_decay"] = trial.suggest_float("weight_decay_sgd", 1e-5, 2e-3, log=True)
    else:
        config["learning_rate"] = trial.suggest_float("learning_rate_adamw", 1e-4, 5e-2, log=True)
        config["weight_decay"] = trial.suggest_float("weight_decay_adamw", 1e-6, 1e-1, log=True)
    config["batch_size"] = trial.suggest_categorical("batch_size", [64, 128, 256])
    config["schedule"] = trial.suggest_categorical("schedule", ["onecycle", "cosine", "plateau"])

    config["label_smoothing"] = trial.suggest_float("label_smoothing", 0.0, 0.2)
    config["crop_padding"] = trial.suggest_int("crop_padding", 0, 2)
    config["flip"] = trial.suggest_categorical("flip", [True, False])
    config["erase"] = trial.suggest_float("erase", 0.0, 0.4)
    config["ema_decay"] = trial.suggest_categorical("ema_decay", [0.0, 0.99])
    return config
