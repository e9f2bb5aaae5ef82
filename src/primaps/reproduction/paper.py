"""Scores printed in the paper (Hahn et al., TMLR 2024): accuracy and mean IoU in %."""

from __future__ import annotations

PaperScores = tuple[float | None, float]
"""Accuracy and mean IoU in %; accuracy is None if the paper has only mean IoU."""

BACKBONES = ("dino-vits8", "dino-vitb8", "dinov2-vits14", "dinov2-vitb14")
DATASETS = ("cityscapes", "cocostuff", "potsdam")

EPOCHS = {"cityscapes": 50, "cocostuff": 5, "potsdam": 50}
"""Epochs of EM and of the baseline (section 4.1)."""

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

# The same tables, STEGO and HP: (method, backbone) -> alone, with PriMaPs-EM, linear probe on its
# codes. The paper quotes the scores of the method alone and of its probe from the method's paper.
ON_TOP: dict[
    str, dict[tuple[str, str], tuple[PaperScores | None, PaperScores | None, PaperScores | None]]
] = {
    "cityscapes": {
        ("HP", "dino-vits8"): ((80.1, 18.4), (76.6, 19.2), (91.2, 30.6)),
        ("STEGO", "dino-vitb8"): ((73.2, 21.0), (78.6, 21.6), (89.6, 28.0)),
        ("HP", "dino-vitb8"): ((79.5, 18.4), None, (90.9, 33.0)),
    },
    "cocostuff": {
        ("STEGO", "dino-vits8"): ((48.3, 24.5), None, (74.4, 38.3)),
        ("HP", "dino-vits8"): ((57.2, 24.6), (57.8, 25.1), (75.6, 42.7)),
        ("STEGO", "dino-vitb8"): ((56.9, 28.2), (57.9, 29.7), (76.1, 41.0)),
    },
    "potsdam": {
        ("STEGO", "dino-vits8"): ((77.0, 62.6), (78.4, 64.2), (85.9, 74.8)),
        ("HP", "dino-vitb8"): ((82.4, 69.1), (83.3, 71.0), (88.0, 78.4)),
    },
}

# Tables 4a and 4b, COCO-Stuff with DINO ViT-B/8.
MASKS: dict[str, PaperScores] = {
    "baseline": (38.8, 15.7),
    "similarity masks": (46.3, 19.8),
    "+ NN": (44.9, 20.0),
    "+ P-CRF": (48.4, 21.9),
    "non-iterative": (47.9, 21.7),
}
EM: dict[str, PaperScores] = {
    "baseline": (38.8, 15.7),
    "+ PriMaPs pseudo label": (38.8, 18.0),
    "+ EMA": (45.0, 20.2),
    "+ augment": (46.0, 20.4),
    "+ CRF": (48.4, 21.9),
}

# Table 5, DINO ViT-B/8: pixels in masks, and all pixels, of which those in no mask count as wrong.
ORACLE: dict[str, tuple[PaperScores, PaperScores]] = {
    "cityscapes": ((92.4, 54.0), (73.2, 32.4)),
    "cocostuff": ((93.4, 82.4), (74.1, 55.9)),
    "potsdam": ((95.2, 90.9), (67.4, 48.9)),
}

# Table 6: the backbone of its caption, then baseline, HP, PriMaPs-EM, HP + PriMaPs-EM.
ON_DINOV2: dict[str, tuple[str, tuple[PaperScores, PaperScores, PaperScores, PaperScores]]] = {
    "cityscapes": ("dinov2-vitb14", ((49.5, 15.3), (67.9, 15.9), (71.6, 19.0), (74.3, 16.6))),
    "cocostuff": ("dinov2-vitb14", ((44.5, 22.9), (48.9, 19.8), (46.4, 23.8), (49.3, 20.2))),
    "potsdam": ("dinov2-vits14", ((82.4, 69.9), (79.4, 65.7), (83.1, 71.0), (79.6, 66.0))),
}

# Figure 7, DINO ViT-B/8: mean IoU for each psi that the text states.
PSI: dict[str, dict[float, PaperScores]] = {
    "cityscapes": {0.4: (59.6, 17.6), 0.5: (None, 17.6 + 1.4)},
    "cocostuff": {0.4: (48.5, 21.9), 0.5: (None, 21.9 - 0.8)},
    "potsdam": {0.4: (80.5, 67.0)},
}

# Figure 8a, COCO-Stuff with DINO ViT-B/8: IoU per class.
IOU_METHODS = ("baseline", "PriMaPs-EM", "STEGO", "STEGO + PriMaPs-EM")
IOU_OF = ("cocostuff", "dino-vitb8")
"""The data set and the backbone of Figure 8."""
IOU: dict[str, tuple[float, float, float, float]] = {
    "electronic": (0.0, 0.0, 0.0, 0.2),
    "appliance": (0.0, 0.2, 0.3, 0.0),
    "food-things": (0.0, 0.0, 0.3, 0.0),
    "furniture-things": (0.2, 0.8, 13.7, 14.1),
    "indoor": (0.0, 0.0, 0.1, 0.2),
    "kitchen": (0.0, 0.0, 0.0, 0.0),
    "accessory": (0.0, 0.0, 0.7, 0.3),
    "animal": (15.3, 21.4, 74.1, 76.8),
    "outdoor": (0.1, 4.6, 0.1, 10.9),
    "person": (58.3, 68.7, 61.7, 64.3),
    "sports": (0.5, 0.5, 10.9, 0.9),
    "vehicle": (9.1, 12.6, 40.7, 53.8),
    "ceiling": (23.7, 36.1, 36.3, 48.2),
    "floor": (3.1, 44.4, 30.2, 31.9),
    "food-stuff": (2.2, 0.0, 38.8, 39.4),
    "furniture-stuff": (8.3, 12.1, 22.5, 25.4),
    "rawmaterial": (12.2, 14.0, 15.6, 16.0),
    "textile": (0.2, 1.1, 11.0, 19.7),
    "wall": (30.7, 45.7, 36.0, 36.1),
    "window": (11.7, 15.9, 2.7, 0.8),
    "building": (31.9, 38.1, 51.8, 55.6),
    "ground": (21.5, 33.3, 44.1, 44.9),
    "plant": (33.8, 42.9, 50.2, 51.2),
    "sky": (77.4, 69.1, 82.9, 83.8),
    "solid": (15.0, 29.1, 19.8, 27.4),
    "structural": (27.1, 38.9, 37.8, 36.2),
    "water": (45.1, 61.4, 58.8, 62.6),
}
