"""The tree against brute force and scipy, and invariants of its cuts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from primaps.classes import tree as growing
from primaps.classes.tree import Tree, TreeError, grow, leaf_count, leaf_map, merge_order, ward


def groups(table) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(np.asarray(table) == k).tolist()) for k in np.unique(table)}


def test_the_cut_at_the_models_own_k_is_the_model(made, tree):
    _, assigned, _, _ = made
    assert tree.cut(5).tolist() == tree.owner.tolist()
    assert tree.masks.sum() == len(assigned)
    for k in range(5):
        assert tree.masks[tree.owner == k].sum() == (assigned == k).sum()


def test_every_cut_is_nested_in_every_smaller_one(tree):
    for fine in range(2, len(tree) + 1):
        finer, coarser = tree.cut(fine), tree.cut(fine - 1)
        assert sorted(finer.unique().tolist()) == list(range(fine))
        for k in range(fine):
            assert len(coarser[finer == k].unique()) == 1
        first = [int((finer == k).nonzero()[0]) for k in range(fine)]
        assert first == sorted(first)  # classes are in the order of their first parts


def test_existing_leaves_are_found(made, tree):
    features, assigned, parts, _ = made
    found = leaf_of(tree, features, assigned)
    assert len(tree) == 20
    table = torch.zeros(20, 20).index_put_((parts, found), torch.ones(600), accumulate=True)
    assert float(table.amax(1).sum()) / 600 > 0.97


def leaf_of(tree, features, assigned):
    cosines = features @ tree.directions.float().T
    return cosines.masked_fill(tree.owner != assigned[:, None], -2).argmax(1)


def test_merges_are_those_of_scipy():
    """Groups of one mask each: their sums are the points that scipy merges."""
    random = torch.Generator().manual_seed(3)
    points = F.normalize(torch.randn(30, 8, generator=random), dim=1)
    merges = merge_order(points, torch.ones(30))
    known = linkage(pdist(points), "ward")
    for classes in range(2, 30):
        left = {i: {i} for i in range(30)}
        for step, (a, b) in enumerate(merges[: 30 - classes].tolist()):
            left[30 + step] = left.pop(a) | left.pop(b)
        assert {frozenset(s) for s in left.values()} == groups(fcluster(known, classes, "maxclust"))


def test_ward_cost_from_sums_is_that_over_masks():
    random = torch.Generator().manual_seed(4)
    one, other = (F.normalize(torch.randn(n, 5, generator=random).double(), dim=1) for n in (7, 4))
    sums = one.sum(0), torch.tensor(7.0).double(), other.sum(0)[None], torch.tensor([4.0]).double()

    def spread(x):
        return (x - x.mean(0)).square().sum()

    expected = spread(torch.cat([one, other])) - spread(one) - spread(other)
    torch.testing.assert_close(ward(*sums)[0], expected)


def test_costs_are_the_losses_of_eq_9(made, tree):
    """The best directions for the cuts before and after each merge, on all masks."""
    features = made[0]
    own = leaf_labels(made, tree)
    losses = []
    for classes in range(len(tree), 0, -1):
        label = tree.cut(classes)[own]
        sums = torch.zeros(classes, 16).index_add_(0, label, features)
        losses.append(float(sums.norm(dim=1).sum()) / len(features))
    np.testing.assert_allclose(-np.diff(losses), tree.cost, atol=1e-5)


def leaf_labels(made, tree):
    """Leaf of each mask, by the nearest leaf; the leaves are well separated."""
    features, assigned, _, _ = made
    found = leaf_of(tree, features, assigned)
    assert torch.bincount(found, minlength=len(tree)).tolist() == tree.masks.tolist()
    return found


def test_leaf_map_against_a_loop_over_pixels(tree):
    random = torch.Generator().manual_seed(5)
    features = torch.randn(16, 6, 7, generator=random)
    classes = torch.randint(0, 4, (6, 7), generator=random)
    found = leaf_map(tree, classes, features)
    for y in range(6):
        for x in range(7):
            cosines = tree.directions.float() @ F.normalize(features[:, y, x], dim=0)
            own = (tree.owner == classes[y, x]).nonzero()[:, 0]
            assert int(found[y, x]) == int(own[cosines[own].argmax()])
    assert (tree.owner[found.long()] == classes).all()


def test_a_larger_map_stays_in_its_classes(tree):
    random = torch.Generator().manual_seed(6)
    classes = torch.randint(0, 5, (40, 30), generator=random)
    found = leaf_map(tree, classes, torch.randn(16, 5, 4, generator=random))
    assert (tree.cut(5)[found.long()] == classes).all()


def test_an_empty_class_keeps_its_prototype(made):
    features, assigned, _, prototypes = made
    here = assigned != 2
    tree = grow(features[here], assigned[here], prototypes, leaves=12)
    alone = (tree.owner == 2).nonzero()[:, 0]
    assert tree.masks[alone].tolist() == [0]
    torch.testing.assert_close(tree.directions[alone[0]].float(), prototypes[2], atol=1e-3, rtol=0)
    assert tree.cut(2).unique().tolist() == [0, 1]


def test_few_masks_give_few_leaves(made):
    features, assigned, _, prototypes = made
    few = torch.arange(0, 600, 40)
    tree = grow(features[few], assigned[few], prototypes)
    assert len(tree) == 5
    with pytest.raises(TreeError, match="cut at 1 to 5 classes, got 6"):
        tree.cut(6)


def test_many_masks_are_sampled_and_give_nearly_the_same_leaves(made, monkeypatch):
    features, assigned, _, prototypes = made
    whole = grow(features, assigned, prototypes, leaves=20)
    monkeypatch.setattr(growing, "SAMPLE", 400)
    sampled = grow(features, assigned, prototypes, leaves=20)
    again = grow(features, assigned, prototypes, leaves=20)
    assert torch.equal(sampled.directions, again.directions)
    assert ((sampled.directions @ whole.directions.T).amax(1) > 0.97).all()


def test_a_tree_equals_that_of_its_tensors(tree):
    other = Tree.from_tensors(tree.tensors())
    assert other.names() == tree.names()
    assert torch.equal(other.directions, tree.directions)
    assert torch.equal(other.cut(9), tree.cut(9))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"merges": torch.tensor([[0, 1], [0, 2]])}, "merge 1 joins nodes"),
        (
            {"merges": torch.tensor([[0, 1]])},
            "tensor merges is torch.int64 of",
        ),
        ({"classes": torch.tensor(7)}, "7 classes cannot have 3 leaves"),
        ({"merges": torch.tensor([[0, 2], [3, 1]])}, "order of their classes"),
    ],
)
def test_a_damaged_tree_is_refused(change, sentence):
    tensors = {
        "directions": torch.eye(3).half(),
        "masks": torch.tensor([1, 1, 1]),
        "merges": torch.tensor([[0, 1], [3, 2]]),
        "cost": torch.zeros(2),
        "classes": torch.tensor(2),
    }
    Tree.from_tensors(tensors)
    with pytest.raises(TreeError, match=sentence):
        Tree.from_tensors({**tensors, **change})
    with pytest.raises(TreeError, match="a tree of classes: tensor directions is missing"):
        Tree.from_tensors({})


def test_leaf_counts():
    assert [leaf_count(k) for k in (2, 11, 27, 64, 256)] == [64, 64, 108, 256, 256]


def test_bad_input_is_one_sentence(made):
    features, assigned, _, prototypes = made
    with pytest.raises(ValueError, match="at least one mask"):
        grow(features[:0], assigned[:0], prototypes)
