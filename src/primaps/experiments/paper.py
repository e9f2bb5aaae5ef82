"""Figures of the paper (Hahn et al., TMLR 2024): accuracy and mean IoU in %, as printed there."""

from __future__ import annotations

PaperScores = tuple[float, float]
"""Accuracy and mean IoU in %."""

BACKBONES = ("dino-vits8", "dino-vitb8", "dinov2-vits14", "dinov2-vitb14")

# Tables 1 to 3: data set, backbone -> baseline, PriMaPs-EM, linear probe.
MAIN: dict[str, dict[str, tuple[PaperScores, PaperScores, PaperScores]]] = {
    "cityscapes": {
        "dino-vits8": ((61.4, 15.8), (81.2, 19.4), (91.0, 35.4)),
        "dino-vitb8": ((49.2, 15.5), (59.6, 17.6), (91.6, 35.9)),
        "dinov2-vits14": ((49.5, 15.3), (71.5, 19.0), (90.8, 41.9)),
        "dinov2-vitb14": ((36.1, 14.9), (82.9, 21.3), (91.0, 44.8)),
    },
    "cocostuff": {
        "dino-vits8": ((34.2, 9.5), (46.5, 16.4), (72.0, 41.3)),
        "dino-vitb8": ((38.8, 15.7), (48.5, 21.9), (74.0, 44.6)),
        "dinov2-vits14": ((44.5, 22.9), (46.5, 23.8), (77.9, 52.8)),
        "dinov2-vitb14": ((35.0, 17.9), (52.8, 23.6), (77.3, 53.7)),
    },
    "potsdam": {
        "dino-vits8": ((56.6, 33.6), (62.5, 38.9), (82.0, 69.0)),
        "dino-vitb8": ((66.1, 49.4), (80.5, 67.0), (84.3, 72.8)),
        "dinov2-vits14": ((75.9, 61.0), (78.5, 64.3), (86.6, 76.2)),
        "dinov2-vitb14": ((82.4, 69.9), (83.2, 71.1), (87.9, 78.3)),
    },
}

# The same tables, on top of others: data set -> (method, backbone) -> alone, with PriMaPs-EM.
ON_TOP: dict[str, dict[tuple[str, str], tuple[PaperScores, PaperScores]]] = {
    "cityscapes": {
        ("STEGO", "dino-vitb8"): ((73.2, 21.0), (78.6, 21.6)),
        ("HP", "dino-vits8"): ((80.1, 18.4), (76.6, 19.2)),
    },
    "cocostuff": {
        ("STEGO", "dino-vitb8"): ((56.9, 28.2), (57.9, 29.7)),
        ("HP", "dino-vits8"): ((57.2, 24.6), (57.8, 25.1)),
    },
    "potsdam": {
        ("STEGO", "dino-vits8"): ((77.0, 62.6), (78.4, 64.2)),
        ("HP", "dino-vitb8"): ((82.4, 69.1), (83.3, 71.0)),
    },
}

# Table 6: HP on DINOv2, alone and with PriMaPs-EM.
ON_DINOV2: dict[str, dict[tuple[str, str], tuple[PaperScores, PaperScores]]] = {
    "cityscapes": {("HP", "dinov2-vitb14"): ((67.9, 15.9), (74.3, 16.6))},
    "cocostuff": {("HP", "dinov2-vitb14"): ((48.9, 19.8), (49.3, 20.2))},
    "potsdam": {("HP", "dinov2-vits14"): ((79.4, 65.7), (79.6, 66.0))},
}

# Tables 4a and 4b, COCO-Stuff with DINO ViT-B/8.
ABLATION = ("cocostuff", "dino-vitb8")
MASKS: dict[str, PaperScores] = {
    "similarity masks": (46.3, 19.8),
    "+ nearest neighbour": (44.9, 20.0),
    "+ CRF": (48.4, 21.9),
    "non-iterative": (47.9, 21.7),
}
EM: dict[str, PaperScores] = {
    "baseline": (38.8, 15.7),
    "+ pseudo label": (38.8, 18.0),
    "+ EMA": (45.0, 20.2),
    "+ augment": (46.0, 20.4),
    "+ CRF": (48.4, 21.9),
}

# Table 5, DINO ViT-B/8: pixels in masks, and all pixels with those in no mask counted wrong.
ORACLE: dict[str, tuple[PaperScores, PaperScores]] = {
    "cityscapes": ((92.4, 54.0), (73.2, 32.4)),
    "cocostuff": ((93.4, 82.4), (74.1, 55.9)),
    "potsdam": ((95.2, 90.9), (67.4, 48.9)),
}

EPOCHS = {"cityscapes": 50, "cocostuff": 5, "potsdam": 50}
"""Passes of EM over the images."""
