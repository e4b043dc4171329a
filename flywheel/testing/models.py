"""A model folder with random weights that transformers and vLLM load offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_CHAT = """\
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content or '' }}
{%- for call in m.tool_calls or [] %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""
_TOOLS = """\
{%- if tools -%}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif -%}
"""
_CORPUS = (
    "You help customers of a shop. Where is order A-1? Please send it back.",
    '<tool_call>{"name": "track_order", "arguments": {"order_id": "A-1"}}</tool_call>',
    '{"type": "function", "function": {"description": "", "parameters": {"properties": {}}}}',
    '{"score": 1} {"score": 10} QUESTION REFERENCE ANSWER CANDIDATE ANSWER',
    "system user assistant Tools: To call a tool, answer with: billing shipping refund",
)


def tiny_model(folder: Path, *, tools: bool = False, seed: int = 0) -> Path:
    """Write a model folder: a two-layer Llama with random weights, and its own tokenizer.

    transformers and vLLM load it offline; what it says is nonsense, but the same nonsense for the
    same seed. Its chat template is ChatML.

    Args:
        folder: Where to; made if missing.
        tools: Whether the chat template has a place for tools.
        seed: Decides the weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tiny_tokenizer()
    tokenizer.chat_template = (_TOOLS if tools else "") + _CHAT
    tokenizer.save_pretrained(str(folder))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(str(folder), safe_serialization=True)
    return folder


def _tiny_tokenizer() -> Any:
    """Byte-level BPE, so that any text has tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106 -- no password
        pad_token="<|endoftext|>",  # noqa: S106
    )
