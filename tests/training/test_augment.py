import numpy as np
import pytest
import torch

from whispertag.training.augment import Augment


def batch(n_clips=64, n_layers=3, n_steps=25, width=4, n_classes=10):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(n_clips, n_layers, n_steps, width, generator=generator) + 10  # nothing is 0 by itself
    labels = (torch.rand(n_clips, n_classes, generator=generator) < 0.3).float()
    return states, labels


def rng(seed=0):
    return np.random.default_rng(seed)


def test_mixup_is_a_clip_plus_another_with_labels_alike():
    states, labels = batch()
    mixed, mixed_labels = Augment(mixup=0.5).mix(states, labels, rng())
    untouched = [i for i in range(64) if torch.equal(mixed[i], states[i])]
    assert 16 < len(untouched) < 48, "about half, at p = 0.5"
    assert all(torch.equal(mixed_labels[i], labels[i]) for i in untouched)
    found = 0
    for i in set(range(64)) - set(untouched):
        for j in range(64):
            lam = ((mixed[i] - states[j]) / (states[i] - states[j])).nanmedian()
            if torch.allclose(mixed[i], lam * states[i] + (1 - lam) * states[j], atol=1e-4):
                assert torch.allclose(mixed_labels[i], lam * labels[i] + (1 - lam) * labels[j], atol=1e-3)
                found += 1
                break
    assert found >= 64 - len(untouched) - 2


def test_lambda_is_beta_10_10():
    states = torch.arange(2000.0)[:, None, None, None].expand(-1, 1, 1, 1)
    labels = torch.ones(2000, 1)
    draw = rng(3)
    augment = Augment(mixup=1.0)
    mixed, _ = augment.mix(states, labels, draw)
    again = rng(3)
    lam = again.beta(10.0, 10.0, 2000)
    again.random(2000)
    partner = again.integers(2000, size=2000)
    expected = lam * np.arange(2000) + (1 - lam) * partner
    assert np.allclose(mixed.flatten().numpy(), expected, atol=1e-2)
    assert abs(lam.mean() - 0.5) < 0.01 and abs(lam.std() - 0.109) < 0.01


def test_the_mask_is_one_span_the_same_in_all_layers():
    states, _ = batch(n_clips=500)
    masked = Augment(time_mask=10).mask(states, rng())
    hidden = (masked == 0).all(dim=-1)
    assert (hidden == hidden[:, :1]).all(), "the same steps in every layer"
    assert torch.equal(masked[~hidden], states[~hidden])
    widths = hidden[:, 0].sum(dim=1)
    assert (widths.min(), widths.max()) == (0, 10)
    for row in hidden[:, 0].int():
        assert (row.diff() == 1).sum() + row[0] <= 1, "one span"
    assert hidden[:, 0, 0].any() and hidden[:, 0, -1].any(), "both ends can be hidden"


def test_a_mask_never_hides_everything():
    states, _ = batch(n_steps=3)
    assert (Augment(time_mask=10).mask(states, rng()) != 0).any(dim=2).all()


def test_label_smoothing_is_the_papers_and_stays_linear_when_mixed():
    labels = torch.tensor([[1.0, 0.0, 0.25, 0.0]])
    smooth = Augment(label_smoothing=0.1).smooth(labels)
    assert torch.allclose(smooth, torch.tensor([[0.9, 0.025, 0.025 + 0.25 * 0.875, 0.025]]))


def test_everything_off_changes_nothing_bit_for_bit():
    states, labels = batch()
    off = Augment(mixup=0, time_mask=0, label_smoothing=0)
    new_states, new_labels = off(states, labels, rng())
    assert torch.equal(new_states, states) and torch.equal(new_labels, labels)


def test_it_draws_from_the_given_generator_alone():
    states, labels = batch()
    first = Augment()(states, labels, rng(1))
    torch.manual_seed(9)
    np.random.seed(9)
    second = Augment()(states, labels, rng(1))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert not torch.equal(first[0], Augment()(states, labels, rng(2))[0])


@pytest.mark.parametrize("wrong", [{"mixup": 1.5}, {"label_smoothing": -0.1}, {"time_mask": -1}, {"mixup_beta": 0}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match="augment.*" + next(iter(wrong))):
        Augment(**wrong)
