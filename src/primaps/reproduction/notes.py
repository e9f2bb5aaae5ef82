"""What a report has to say beside a comparison: how ours differs from the paper's and its program's
runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from primaps.reproduction.reproduction import Reproduction
from primaps.reproduction.run_context import Outcome


def differences(outcomes: Sequence[Outcome], reproduction: Reproduction) -> Iterator[str]:
    """Sentences about the rows that the paper has figures for; none if there are none."""
    rows = [outcome.row for outcome in outcomes if outcome.row.paper]
    if not rows:
        return
    kinds, program = {row.kind for row in rows}, reproduction.protocol == "program"
    seeds = len(reproduction.seeds)
    if kinds != {"oracle"}:
        yield (
            "The paper's figures are of the checkpoint with the best mean IoU on the validation "
            "labels over all epochs, of one seed; ours are of the last state of "
            f"{f'{seeds} seeds' if seeds > 1 else 'one seed'}: figures a little below the paper's "
            "are to be expected."
        )
    if any(row.quoted for row in rows):
        yield "Figures with * are quoted in the paper from the paper of that method."
    yield (
        "Images and labels are resized at evaluation as in the authors' program: as tensors, "
        "without antialiasing."
        if program
        else "Images are resized with Pillow, antialiased; the authors' program does so in "
        "training, and at evaluation resizes tensors without antialiasing (--protocol program)."
    )
    yield (
        "Tables of positions are scaled by the factors of the programs of DINO and DINOv2 (40.1/28 "
        "for 320 px in patches of 8, 23.1/37 for 322 px in patches of 14)."
        if program
        else "Tables of positions are interpolated to the exact size, as in transformers; the "
        "programs of DINO and DINOv2 scale them by 40.1/28 and 23.1/37 (--protocol program)."
    )
    if "em" in kinds:
        yield _augmentation(reproduction)
        constant = any(not reproduction.config(row, 0).get("momentum_ramp", True) for row in rows)
        yield (
            "The moving average decays by a constant 0.98, as in Eq. 11; in the authors' program "
            "its first two updates copy the student and the n-th decays by 1 - 1/n at most "
            "(--protocol program)."
            if constant
            else "The decay of the moving average is ramped up as in the authors' program: its "
            "first two updates copy the student, the n-th decays by 1 - 1/n at most."
        )
    if kinds & {"baseline", "em"}:
        yield (
            "K-means starts from the principal components of the features of all images, computed "
            "exactly, the program from those of at most 93 batches; here images are flipped at "
            "random in k-means, in the program they are not."
        )
    if any(row.projection for row in rows):
        yield (
            "Codes of STEGO and HP come from the network inside the checkpoint, masks from the "
            "backbone of the row. The released STEGO network stays in training mode, so that a "
            "tenth of its channels is dropped at random; ours drops none. Both resize images by "
            "nearest neighbor in their own programs."
        )


def _augmentation(reproduction: Reproduction) -> str:
    views = reproduction.views
    if views == 0:
        return "The student sees clean images; in the paper it sees augmented ones (--views fresh)."
    how = "anew in every step" if views == "fresh" else f"once, in {views} views of each image"
    return (
        f"Images are augmented {how}, in RGB; the program augments the normalized tensor, which "
        "clamps jittered views at the mean color."
    )
