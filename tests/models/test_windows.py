"""The vision tower's windows in one call, against transformers' loop over them."""

import pytest
import torch

from experiments.tiny_models import build_tiny_llava, build_tiny_qwen
from reverse.models import family_of, window_attention
from reverse.models.window_attention import NAME, use_varlen_window_attention


@pytest.fixture(scope="module")
def qwen():
    torch.manual_seed(0)
    return build_tiny_qwen(seed=0)[0].eval()


def pictures(model, sizes=((10, 14), (6, 26)), seed=0):
    """Patches and grids of pictures whose last windows are cut off."""
    config = model.config.vision_config
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(sum(h * w for h, w in sizes), width, generator=generator)
    return patches, torch.tensor([[1, h, w] for h, w in sizes])


def test_the_same_features(qwen, monkeypatch):
    """Patches would look at other windows than their own."""
    monkeypatch.setattr(window_attention, "_kernel_here", lambda tower: True)
    tower = family_of(qwen).vision_tower(qwen)
    calls = []
    monkeypatch.setattr(
        window_attention, "_attend", lambda *a, f=window_attention._attend, **k: calls.append(1) or f(*a, **k)
    )
    patches, grid = pictures(qwen)
    with torch.no_grad():
        expected = tower(patches, grid_thw=grid)
        with use_varlen_window_attention(qwen):
            assert tower.config._attn_implementation == NAME
            found = tower(patches, grid_thw=grid)
    assert len(calls) == len(tower.blocks)  # one a layer
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=0)
    torch.testing.assert_close(found.pooler_output, expected.pooler_output, rtol=0, atol=0)
    assert tower.config._attn_implementation == "sdpa"
    assert qwen.config.get_text_config()._attn_implementation == "sdpa"


def test_put_back_after_an_error(qwen, monkeypatch):
    """A run that fails would leave a model that no saved configuration describes."""
    monkeypatch.setattr(window_attention, "_kernel_here", lambda tower: True)
    with pytest.raises(KeyError), use_varlen_window_attention(qwen):
        raise KeyError
    assert family_of(qwen).vision_tower(qwen).config._attn_implementation == "sdpa"


def test_nothing_changes_where_it_cannot_be(qwen):
    """Machines without the kernel, and LLaVA, would fail or lose the attention somebody chose."""
    for model in (qwen, build_tiny_llava(seed=0)[0]):
        tower = family_of(model).vision_tower(model)
        before = tower.config._attn_implementation
        with use_varlen_window_attention(model):
            on_cuda = torch.cuda.is_available() and model is qwen
            assert tower.config._attn_implementation == (NAME if on_cuda else before)


@pytest.mark.parametrize("fault", ["none", "transposed", "raises"])
def test_a_kernel_that_does_otherwise_is_not_used(monkeypatch, fault):
    """A release with another layout would train on wrong features in silence."""

    def kernel(query, key, value, starts, longest):
        if fault == "raises":
            raise RuntimeError("no such kernel")
        seen = window_attention._one_by_one(query, key, value, starts)
        return seen.flip(1) if fault == "transposed" else seen

    monkeypatch.setattr(window_attention, "_by_kernel", kernel)
    window_attention._agrees.cache_clear()
    if fault == "none":
        assert window_attention._agrees(2, 16, "cpu")
    else:
        with pytest.warns(UserWarning, match="one by one"):
            assert not window_attention._agrees(2, 16, "cpu")
    window_attention._agrees.cache_clear()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("grad", [False, True])
def test_the_kernel_equals_the_loop(qwen, grad):
    """The kernel would be given lengths, scale or layout that it understands otherwise."""
    tower = family_of(qwen).vision_tower(qwen).to("cuda", torch.bfloat16)
    patches, grid = (each.cuda() for each in pictures(qwen))
    patches = patches.bfloat16()
    found = {}
    for name in ("loop", "kernel"):
        leaf = patches.clone().requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            if name == "kernel":
                with use_varlen_window_attention(qwen):
                    assert tower.config._attn_implementation == NAME
                    out = tower(leaf, grid_thw=grid).pooler_output
            else:
                out = tower(leaf, grid_thw=grid).pooler_output
        if grad:
            out.float().square().sum().backward()
        found[name] = (out.float(), leaf.grad.float() if grad else None)
    qwen.to("cpu", torch.float32)
    for mine, theirs in zip(*found.values(), strict=True):
        if mine is not None:
            assert (mine - theirs).norm() / theirs.norm() < 2e-2
