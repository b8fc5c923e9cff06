"""Answers as tokens: what bears loss, where examples are cut, and the loss by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from safemerge.training.answers import IGNORED, EncodedExample, answer_nll, collate, encode
from safemerge.training.data import Example


class Letters:
    """A tokenizer of letters with a chat template: ``u<request>a<answer>.``."""

    def apply_chat_template(self, turns, *, add_generation_prompt, return_dict):
        assert return_dict
        text = "u" + turns[0]["content"] + ("a" if add_generation_prompt else "")
        if len(turns) > 1:
            text += f"a{turns[1]['content']}."
        return {"input_ids": [ord(letter) for letter in text]}


def test_the_answer_and_what_closes_it_come_after_the_request():
    (example,) = encode(Letters(), [Example("why", "so")], 10)
    assert example == EncodedExample([ord(letter) for letter in "uwhyaso."], 5)


@pytest.mark.parametrize(("length", "kept"), [(8, "uwhyaso."), (6, "uwhyas"), (5, None)])
def test_examples_are_cut_and_dropped_where_no_answer_is_left(length, kept):
    found = encode(Letters(), [Example("why", "so")], length)
    assert ["".join(map(chr, example.input_ids)) for example in found] == ([kept] if kept else [])


def test_a_batch_is_padded_on_the_right_and_labels_answers_alone():
    batch = collate([EncodedExample([5, 6, 7], 2), EncodedExample([8, 9], 1)], 0, "cpu")
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 7], [IGNORED, 9, IGNORED]]


def test_the_loss_is_the_sum_over_answer_tokens_each_predicted_by_the_one_before():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 10, generator=generator)
    asked = []

    def model(input_ids, attention_mask, use_cache, logits_to_keep):
        asked.append(logits_to_keep.tolist())
        return SimpleNamespace(logits=logits[:, logits_to_keep])

    batch = collate([EncodedExample([5, 6, 7], 2), EncodedExample([8, 9], 1)], 0, "cpu")
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    found = answer_nll(model, inputs, batch.labels)
    scores = logits.log_softmax(-1)
    assert asked == [[0, 1]]  # no logits of the last position, which predicts nothing
    assert float(found) == pytest.approx(-float(scores[0, 1, 7] + scores[1, 0, 9]))
