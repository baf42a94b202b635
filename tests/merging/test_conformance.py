"""The same numbers as the papers' authors' code, on tensors and on random networks."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher, ViTConfig, ViTForImageClassification

from hf_tome import MergeConfig, apply, trace
from hf_tome.merging import bipartite_soft_matching, matrix_matching

NETWORKS = {
    "vit": (ViTConfig, ViTForImageClassification),
    "deit_distilled": (DeiTConfig, DeiTForImageClassificationWithTeacher),
}


def load(folder, name):
    return json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["tome_vit", "tome_deit_distilled"])
def test_networks(conformance, name, backend):
    meta, vectors = load(conformance, name)
    config, cls = NETWORKS[meta["family"]]
    model = cls._from_config(config(**meta["config"]), attn_implementation=backend).eval()
    model.load_state_dict({key[6:]: value for key, value in vectors.items() if key.startswith("state.")})
    assert meta["cases"]
    for case, options in meta["cases"].items():
        apply(model, MergeConfig(**options, trace=True))
        with torch.no_grad():
            logits = model(vectors["pixel_values"]).logits
        torch.testing.assert_close(logits, vectors[f"logits.{case}"], atol=1e-4, rtol=0)
        found = trace(model)
        torch.testing.assert_close(found.size[..., 0], vectors[f"size.{case}"], atol=0, rtol=0)
        assert torch.equal(found.source, vectors[f"source.{case}"].long()), case


def test_bipartite_soft_matching(conformance):
    meta, vectors = load(conformance, "bipartite")
    for case, options in meta.items():
        match = bipartite_soft_matching(vectors[f"{case}.metric"], **options)
        x, size = match.merge(vectors[f"{case}.x"], vectors[f"{case}.size"])
        expected, expected_size = vectors[f"{case}.merged"], vectors[f"{case}.merged_size"]
        if options["class_token"]:
            torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(size, expected_size, atol=0, rtol=0)
        else:
            # The authors order unmerged tokens by similarity here, where rounding may swap them: compare as multisets.
            ours, theirs = torch.cat([x, size], dim=-1), torch.cat([expected, expected_size], dim=-1)
            nearest = torch.cdist(ours.double(), theirs.double()).argmin(dim=-1)
            assert all(len(set(row.tolist())) == x.shape[1] for row in nearest)
            matched = theirs.gather(1, nearest[..., None].expand_as(theirs))
            torch.testing.assert_close(ours, matched, atol=1e-5, rtol=0)
        if not options["distill_token"]:
            torch.testing.assert_close(match.unmerge(x), vectors[f"{case}.restored"], atol=1e-5, rtol=0)


def test_unmerge_with_a_distillation_token_returns_each_token_its_own(conformance):
    # The authors' unmerge forgets that their merge put the distillation token second, and hands tokens to the wrong
    # members (case 3: 86 of 198). Here every token gets back the token that holds it, whatever the order.
    meta, vectors = load(conformance, "bipartite")
    for case in (case for case, options in meta.items() if options["distill_token"]):
        x = vectors[f"{case}.x"]
        match = bipartite_soft_matching(vectors[f"{case}.metric"], **meta[case])
        merged, _ = match.merge(x, vectors[f"{case}.size"])
        restored = match.unmerge(merged)
        untouched = torch.ones(x.shape[:2], dtype=torch.bool)
        for batch, (members, into) in enumerate(zip(match.merged, match.into)):
            untouched[batch, members] = False
            untouched[batch, match.kept[batch, into]] = False
        assert untouched.any()
        torch.testing.assert_close(restored[untouched], x[untouched], atol=0, rtol=0)


def test_matrix_matching(conformance):
    meta, vectors = load(conformance, "mame")
    for case, options in meta.items():
        match = matrix_matching(vectors[f"{case}.x"], **options, batching="union")  # the paper's rule
        merged, _ = match.merge(vectors[f"{case}.x"])
        torch.testing.assert_close(merged.double(), vectors[f"{case}.merged"], atol=1e-5, rtol=0)
        torch.testing.assert_close(match.weights.double(), vectors[f"{case}.weights"], atol=1e-5, rtol=0)
        assert torch.equal(match.preserved.any(dim=0), vectors[f"{case}.preserved"])
