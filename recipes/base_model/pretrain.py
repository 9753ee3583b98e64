"""Pretrains the bundled base model: a Llama of 6 million parameters, from nothing, on a CPU.

    python recipes/base_model/pretrain.py --text FOLDER --output src/weft/base --minutes 80

FOLDER holds the collection that `corpus.py` names, and `wikitext2/test.txt` for the evaluation. The
learning rate follows the clock (warm-up, hold, linear decay to zero), so that a run of any length ends
well. A later run can take up where one ended, on the rows that it did not reach: --continue-from FOLDER.
Hidden matrices are trained by Muon (Jordan et al., 2024), embeddings and norms by AdamW.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from corpus import documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END, PAD = "<|endoftext|>", "<|pad|>"
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}<|endoftext|>{% endgeneration %}{% else %}{{ message['content'] }}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VOCABULARY, CONTEXT, BATCH = 6144, 512, 8
PEAK_MUON, PEAK_ADAMW, WARMUP = 0.02, 3e-3, 0.02  # the last one is a share of the time


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE, trained on `texts`: any string is encoded, and decodes to itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of width 256 and 6 layers, its output head tied to its embedding."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def blocks(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """All texts in one row, an end token after each, cut into (N, CONTEXT + 1)."""
    ids = [i for row in tokenizer(texts)["input_ids"] for i in [*row, tokenizer.eos_token_id]]
    count = (len(ids) - 1) // CONTEXT
    row = torch.tensor(ids[: count * CONTEXT + 1])
    return row.unfold(0, CONTEXT + 1, CONTEXT)


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, data: torch.Tensor) -> float:
    """Mean cross-entropy of `data`, in nats a token."""
    model.eval()
    losses = [loss_of(model, batch).item() * len(batch) for batch in data.split(8)]
    model.train()
    return sum(losses) / len(data)


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token over `batch` (N, CONTEXT + 1)."""
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def schedule(share: float, decay: float) -> float:
    """The learning rate's factor when `share` of the time has passed; it falls in the last `decay` of it."""
    return min(1.0, share / WARMUP, max(0.0, (1 - share) / decay))


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by Newton-Schulz (Jordan et al., 2024), in float32.

    torch.optim.Muon iterates in bfloat16, which a CPU without bfloat16 products does 30 times slower.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update of every matrix."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                velocity = state["velocity"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(velocity, group["momentum"]))
                stretch = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                parameter.mul_(1 - 0.01 * group["lr"]).add_(update, alpha=-stretch * group["lr"])


def orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The matrix with its singular values moved near 1, by the quintic iteration of Jordan et al."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def train(
    model: LlamaForCausalLM,
    data: torch.Tensor,
    held_out: torch.Tensor,
    reached: int,
    minutes: float,
    rate: float,
    decay: float,
) -> dict[str, float]:
    """Trains for `minutes` on the rows from `reached` on; prints the loss; returns the figures of the run.

    `rate` multiplies both peak learning rates; `decay` is the share of the time in which they fall to zero.
    """
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        Muon(hidden, lr=PEAK_MUON),
        torch.optim.AdamW(others, lr=PEAK_ADAMW, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    compiled = torch.compile(model)
    loss_of(compiled, data[:BATCH]).backward()  # compiling is not training time
    model.zero_grad()
    start, step, seen, smooth = time.monotonic(), 0, 0, 0.0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        rows = (reached + torch.arange(step * BATCH, (step + 1) * BATCH)) % len(data)
        loss = loss_of(compiled, data[rows])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["peak"] * schedule(share, decay)
            optimizer.step()
            optimizer.zero_grad()
        step, seen = step + 1, seen + BATCH * CONTEXT
        smooth = loss.item() if step == 1 else 0.95 * smooth + 0.05 * loss.item()
        if step % 20 == 0:
            speed = seen / (time.monotonic() - start)
            print(f"step {step}  {share:6.1%}  loss {smooth:.3f}  {speed:.0f} tokens/s", flush=True)
        if step % 400 == 0:
            print(f"step {step}  held-out loss {mean_loss(model, held_out[:64]):.4f}", flush=True)
    return {"steps": step, "tokens": seen, "minutes": minutes, "rate": rate, "decay": decay}


def evaluate(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> dict[str, float]:
    """Loss in nats a token and in bits a byte (the measure that does not depend on the tokenizer)."""
    data = blocks([text], tokenizer)
    loss = mean_loss(model, data)
    size = len(tokenizer.decode(data[:, 1:].flatten().tolist()).encode())
    return {"loss": loss, "bits_per_byte": loss * data[:, 1:].numel() / size / math.log(2)}


def sample(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """The prompt and 60 sampled tokens."""
    torch.manual_seed(0)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    output = model.generate(ids, max_new_tokens=60, do_sample=True, temperature=0.7, top_p=0.95)
    return tokenizer.decode(output[0], skip_special_tokens=True)


def main() -> None:
    """Reads the arguments, trains, evaluates and saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder of the text collection")
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--minutes", type=float, default=80)
    parser.add_argument("--rate", type=float, default=1.0, help="multiplies the peak learning rates")
    parser.add_argument("--decay", type=float, default=0.45, help="the last share of the time, in which they fall")
    parser.add_argument("--continue-from", type=Path, help="the output of an earlier run, to train it further")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    training, held_out = documents(arguments.text, arguments.seed)
    earlier: list[dict[str, float]] = []
    if arguments.continue_from:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.continue_from)
        model = LlamaForCausalLM.from_pretrained(arguments.continue_from, dtype=torch.float32)
        earlier = json.loads((arguments.continue_from / "figures.json").read_text(encoding="utf-8"))["runs"]
    else:
        tokenizer = make_tokenizer(training[::3])
        model = make_model(tokenizer)
    data, held_out_blocks = blocks(training, tokenizer), blocks(held_out, tokenizer)
    available = data[:, 1:].numel()
    print(f"{model.num_parameters():,} parameters, {available:,} tokens", flush=True)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(arguments.seed))
    reached = sum(run["tokens"] for run in earlier) // CONTEXT
    runs = [
        *earlier,
        train(model, data[order], held_out_blocks, reached, arguments.minutes, arguments.rate, arguments.decay),
    ]
    figures: dict[str, object] = {
        "parameters": model.num_parameters(),
        "characters_per_token": sum(map(len, training)) / available,
        "runs": runs,
        "epochs": sum(run["tokens"] for run in runs) / available,
    }

    model.to(torch.bfloat16).save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    model = LlamaForCausalLM.from_pretrained(arguments.output, dtype=torch.float32)  # as users get it: rounded
    wikitext = (arguments.text / "wikitext2" / "test.txt").read_text(encoding="utf-8")
    figures["held_out"] = {"loss": mean_loss(model, held_out_blocks)}
    figures["wikitext2_test"] = evaluate(model, tokenizer, wikitext)
    prompts = ["The old man looked at the sea and", "def read_lines(path):\n", "The city of Vienna is"]
    figures["samples"] = [sample(model, tokenizer, prompt) for prompt in prompts]
    print(json.dumps(figures, indent=2))
    (arguments.output / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
