"""Train the demo's language model, a small Llama on text that ships with Python, and write it with its model card.

    python scripts/training/train_tiny_lm.py

It takes under ten minutes on one CPU core. To teach it to look things up, half of the sequences hide needles as
`text-cache` does, with the names of other cities, and the rest repeat a span of themselves; within so few steps it
does not learn that. Most steps run on short sequences, the last ones on longer ones.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from training import SEED, arguments, save_half
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hf_tome.config import parse_config
from hf_tome.demo.digits_demo import DEMOS
from hf_tome.demo.python_texts import training_texts
from hf_tome.evaluation.data.contexts.needles import hide_needles
from hf_tome.evaluation.data.digits import MODELS
from hf_tome.evaluation.reporting.tables import notes, to_markdown
from hf_tome.evaluation.running.runner import evaluate

NAME = "tiny-lm"
CARD = Path(__file__).with_name("tiny_lm_card.md")
VOCABULARY = 1024
CITIES = (
    *("Madrid", "Rome", "Vienna", "Prague", "Athens", "Dublin"),
    *("Tunis", "Lima", "Quito", "Delhi", "Tokyo", "Paris"),
)
"""For training; those of `text-cache` are others, so that the model cannot have learnt where they stand."""
LONGEST = 512
PEAK_RATE = 4e-3
QUESTION_LENGTH = 20
"""Tokens of a question with its answer, or a few more; what they lack is text."""


@dataclass(frozen=True)
class Stage:
    """So many steps on batches of so many sequences of so many tokens, half of which hide so many needles."""

    steps: int
    batch_size: int
    length: int
    num_needles: int


STAGES = (Stage(1800, 32, 128, 2), Stage(300, 8, LONGEST, 3))


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer in which every digit is a token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    special, alphabet = ["<pad>", "<eos>"], pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def make_model() -> LlamaForCausalLM:
    """Return the model with its initial weights."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config)


def make_batch(tokens: Tensor, encode: Any, stage: Stage, generator: torch.Generator) -> Tensor:
    """Return sequences (B, N): half of them with needles, the others with a span of themselves repeated."""
    length = stage.length
    begins = torch.randint(len(tokens) - length, (stage.batch_size,), generator=generator).tolist()
    rows = torch.stack([tokens[begin : begin + length] for begin in begins])
    for at in range(0, stage.batch_size, 2):
        rows[at] = torch.tensor(_with_needles(rows[at].tolist(), encode, stage.num_needles, generator))
        rows[at + 1] = _with_repeated_span(rows[at + 1], generator)
    return rows


def _with_needles(ids: list[int], encode: Any, num_needles: int, generator: torch.Generator) -> list[int]:
    """Hide needles in a sequence, and ask for all of them at its end, in another order."""
    cities = [CITIES[at] for at in torch.randperm(len(CITIES), generator=generator)[:num_needles].tolist()]
    room = QUESTION_LENGTH * num_needles
    seed = int(torch.randint(2**31, (), generator=generator))
    haystack = hide_needles(ids, encode, len(ids) - room, room, seed, cities=cities)
    asked = [haystack.questions[at] for at in torch.randperm(num_needles, generator=generator).tolist()]
    behind = [token for question in asked for token in question.ids]
    return [*haystack.context, *behind, *haystack.following][: len(ids)]


def _with_repeated_span(row: Tensor, generator: torch.Generator) -> Tensor:
    length = len(row)
    span = int(torch.randint(length // 8, length // 3, (), generator=generator))
    begin = int(torch.randint(length - 2 * span, (), generator=generator))
    row[length - span :] = row[begin : begin + span].clone()
    return row


def train(model: LlamaForCausalLM, tokens: Tensor, encode: Any) -> float:
    """Train with AdamW on one learning-rate cycle; return the minutes of processor time."""
    generator = torch.Generator().manual_seed(SEED)
    steps = sum(stage.steps for stage in STAGES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1, cycle_momentum=False
    )
    start, step, running = time.process_time(), 0, 0.0
    model.train()
    for stage in STAGES:
        for _ in range(stage.steps):
            ids = make_batch(tokens, encode, stage, generator)
            logits = model(ids[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            step, running = step + 1, loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
            if step % 50 == 0:
                minutes = (time.process_time() - start) / 60
                print(f"step {step} of {steps}  loss {running:.3f}  {minutes:.1f} min", flush=True)
    return (time.process_time() - start) / 60


def write_card(models: Path, minutes: float) -> None:
    """Measure the saved model as the demo does, and write its model card."""
    demo = DEMOS["texts"]
    with TemporaryDirectory() as place:
        job = demo.job(Path(place), models=models)
        results = evaluate(job, [parse_config(text) for text in demo.configs], batch_size=8)
    config, batches = job.model.config, (f"{stage.steps} of {stage.batch_size} x {stage.length}" for stage in STAGES)
    filled = CARD.read_text().format(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        parameters=job.model.num_parameters(),
        vocabulary=VOCABULARY,
        python=".".join(map(str, sys.version_info[:2])),
        sequences=f"steps on batches of tokens: {', then '.join(batches)}",
        rate=PEAK_RATE,
        seed=SEED,
        minutes=minutes,
        threads=torch.get_num_threads(),
        count=results.data["num_samples"],
        context=results.run["context_tokens"],
        following=results.run["next_tokens"],
        table=to_markdown(results),
        notes=notes(results),
    )
    (models / NAME / "README.md").write_text(filled)
    print(to_markdown(results))


def main() -> None:
    """Train, save, measure."""
    args = arguments(__doc__, MODELS)
    texts = training_texts()
    tokenizer = train_tokenizer(texts)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    tokens = torch.tensor([token for text in texts for token in [*encode(text), tokenizer.eos_token_id]])
    model = make_model()
    minutes = train(model, tokens, encode)
    save_half(model, args.out / NAME, tokenizer)
    write_card(args.out, minutes)


if __name__ == "__main__":
    main()
