"""Photos of one's own: a pretrained body with a new head, the same fine-tuned, and small networks from scratch.

The pretrained body needs `pip install -e '.[photos]'`; without it the search leaves it out and says so. Its head alone
trains in seconds, on features that are computed once. The whole takes a core 20 to 30 s for an epoch of 2,000 images
of 128 pixels.
"""

# The head alone; all, from a random head or from one that was fitted first; small networks from scratch.
WAYS = ["head", "fine-tune", "head-first", "scratch"]
HEAD_EPOCHS = 20

FINE_TUNE = {
    "weight_decay_fine_tune": 1e-2,
    "label_smoothing": 0.1,
    "ema_decay": 0.0,
    "class_weights": "none",
    "crop_scale": 0.6,
    "jitter": 0.0,
    "flip": True,
}
FIRST = [
    {
        "way": "head",
        "learning_rate_head": 5e-3,
        "weight_decay_head": 1e-3,
        "label_smoothing": 0.0,
        "ema_decay": 0.0,
        "class_weights": "none",
    },
    {"way": "fine-tune", "learning_rate_fine_tune": 1e-2, **FINE_TUNE},
    {"way": "head-first", "learning_rate_head_first": 1e-3, **FINE_TUNE},
    {
        "way": "scratch",
        "network": "resnet14-32",
        "learning_rate_scratch": 0.1,
        "weight_decay_scratch": 5e-4,
        "label_smoothing": 0.0,
        "ema_decay": 0.0,
        "class_weights": "none",
        "crop_scale": 0.6,
        "jitter": 0.0,
        "flip": False,
    },
]


def space(trial):
    """Returns one configuration; hyperparameters that it leaves out take the defaults of `TrainConfig`."""
    way = trial.suggest_categorical("way", WAYS)
    config = {"schedule": "onecycle", "batch_size": 32, "patience": None}
    if way == "scratch":
        network = trial.suggest_categorical("network", ["resnet8-32", "resnet14-32"])
        config["architecture"], _, width = network.partition("-")
        config |= {"width": int(width), "image_size": 64, "optimizer": "sgd"}
        config["learning_rate"] = trial.suggest_float("learning_rate_scratch", 0.02, 0.5, log=True)
        config["weight_decay"] = trial.suggest_float("weight_decay_scratch", 1e-4, 5e-3, log=True)
    else:
        config |= {"architecture": "efficientnet_lite0", "pretrained": True, "optimizer": "adamw"}
    if way == "head":
        config |= {"train": "head", "epochs": HEAD_EPOCHS}
        config["learning_rate"] = trial.suggest_float("learning_rate_head", 5e-4, 5e-2, log=True)
        config["weight_decay"] = trial.suggest_float("weight_decay_head", 1e-5, 1e-1, log=True)
    elif way == "fine-tune":
        config["body_lr_factor"] = 0.1
        config["learning_rate"] = trial.suggest_float("learning_rate_fine_tune", 2e-3, 3e-2, log=True)
    elif way == "head-first":
        config["train"] = "head_first"
        config["learning_rate"] = trial.suggest_float("learning_rate_head_first", 2e-4, 3e-3, log=True)
    if way in ("fine-tune", "head-first"):
        config["weight_decay"] = trial.suggest_float("weight_decay_fine_tune", 1e-4, 1e-1, log=True)

    config["label_smoothing"] = trial.suggest_float("label_smoothing", 0.0, 0.1)
    config["ema_decay"] = trial.suggest_categorical("ema_decay", [0.0, 0.99])
    config["class_weights"] = trial.suggest_categorical("class_weights", ["none", "sqrt", "balanced"])
    if way != "head":  # Its features are of images as they are.
        config["crop_scale"] = trial.suggest_float("crop_scale", 0.3, 1.0)
        config["jitter"] = trial.suggest_float("jitter", 0.0, 0.2)
        config["flip"] = trial.suggest_categorical("flip", [True, False])
    return config
