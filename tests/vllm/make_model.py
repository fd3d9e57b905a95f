"""Makes a tiny Qwen2-shaped model without weights: ``make_model.py OUT HIDDEN LAYERS INNER VOCAB HEADS KV_HEADS``.

Runs in the lab's own Python, which has ``tokenizers``. The tokenizer is a byte-level BPE trained on the standard
library's sources, so nothing is downloaded; vLLM fills in random weights (``--load-format dummy``).
"""

from __future__ import annotations

import json
import sys
import sysconfig
from pathlib import Path

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MAX_POSITIONS = 32_768
TRAINING_FILES = 160
CHAT_TEMPLATE = (
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\n' }}"
    "{%- if m['content'] is string %}{{- m['content'] }}"
    "{%- else %}{{- m['content'] | map(attribute='text') | join('') }}{%- endif %}"
    "{{- '<|im_end|>' + '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)


def train_tokenizer(vocab: int, target: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:TRAINING_FILES]
    tokenizer.train([str(source) for source in sources], trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise ValueError(f"the sources give a vocabulary of {tokenizer.get_vocab_size()}, not {vocab}")
    tokenizer.save(str(target))


def tokenizer_config() -> dict[str, object]:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_bos_token": False,
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
        "added_tokens_decoder": {str(i): {"content": text} | plain for i, text in enumerate(SPECIAL_TOKENS)},
    }


def model_config(hidden: int, layers: int, inner: int, vocab: int, heads: int, kv_heads: int) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": MAX_POSITIONS,
        "max_window_layers": layers,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": True,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }


def main() -> None:
    out = Path(sys.argv[1])
    hidden, layers, inner, vocab, heads, kv_heads = map(int, sys.argv[2:8])
    out.mkdir(parents=True, exist_ok=True)
    train_tokenizer(vocab, out / "tokenizer.json")
    (out / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(), indent=1))
    generation = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "do_sample": True, "temperature": 1.0}
    (out / "generation_config.json").write_text(json.dumps(generation))
    # Last: its presence says that the directory is complete.
    config = model_config(hidden, layers, inner, vocab, heads, kv_heads)
    (out / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
