"""A reference VLM with the heads and losses that only its training uses.

There are three losses, all from the scene's own labels: cross-entropy of the answers (several
questions packed behind one picture), linear heads that read each image token's objects (dropped
after training), and a few attention heads taught to look at the objects that are named and asked
about.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from reference import zoo
from reference.lessons import Batch, Tokens
from reference.yard import COLOURS, KINDS


class Trainee(nn.Module):
    """A VLM with the heads that only training uses."""

    def __init__(self, model: PreTrainedModel, tokens: Tokens, recipe: zoo.ModelRecipe) -> None:
        """Wraps a model.

        Args:
            model: an image-text-to-text model with a `text_model` or `language_model`.
            tokens: its tokens.
            recipe: the model's grid, and the layers that are taught where to look.
        """
        super().__init__()
        self.model, self.tokens, self.recipe = model, tokens, recipe
        self.text: Any = model.get_decoder()
        # At these lengths the fused kernel's backward pass is twice as slow on a CPU.
        self.text.config._attn_implementation = "eager"
        tower = getattr(model.model, "vision_model", None)
        if tower is not None:
            tower.config._attn_implementation = "eager"
        width = self.text.config.hidden_size
        outputs = len(KINDS) + len(COLOURS) + 2 + 2 + 1 + sum(recipe.grid)
        self.reader = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))
        tokenizer = tokens._processor.tokenizer
        words = [tokenizer(" " + w, add_special_tokens=False)["input_ids"] for w in KINDS + COLOURS]
        self.word_ids = [ids[0] for ids in words]
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        for layer in recipe.cue_layers:
            attention: Any = self.text.layers[layer].self_attn
            attention.q_proj.register_forward_hook(self._keep(layer, 0))
            attention.k_proj.register_forward_hook(self._keep(layer, 1))

    @property
    def embedding(self) -> Any:
        """The decoder's word embedding, tied to its head."""
        return self.model.get_input_embeddings()

    def _keep(self, layer: int, which: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if which == 0:
                self.seen[layer] = (output, output)
            else:
                self.seen[layer] = (self.seen[layer][0], output)

        return hook

    def image_tokens(self, pixels: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] to the decoder's image embeddings [B, N, width]."""
        if self.model.config.model_type == "idefics3":
            output = self.model.model.get_image_features(pixels[:, None]).pooler_output
        else:
            output = self.model.model.get_image_features(
                pixels,
                vision_feature_layer=self.model.config.vision_feature_layer,
                vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
                output_hidden_states=True,
            ).pooler_output
        return output if isinstance(output, Tensor) else torch.stack(list(output))

    def reading_loss(self, image: Tensor, cells: dict[str, Tensor]) -> Tensor:
        """Binary cross-entropies of what each image token shows, and its words (CLIP-like).

        Args:
            image: [B, N, width] image embeddings.
            cells: labels, as `Batch.cells`.

        Returns:
            A scalar.
        """
        kinds, colours = len(KINDS), len(COLOURS)
        kind, colour, large, offset, present, row, column = (
            self.reader(image).float().split([kinds, colours, 2, 2, 1, *self.recipe.grid], dim=-1)
        )
        occupied = (cells["count"] > 0).float()
        weight = occupied.sum().clamp(min=1)
        loss = F.binary_cross_entropy_with_logits(kind, cells["kind"]) * 6
        loss = loss + _soft_cross_entropy(kind, cells["kind"])
        loss = loss + F.binary_cross_entropy_with_logits(present[..., 0], occupied) * 2
        per_colour = F.binary_cross_entropy_with_logits(colour, cells["colour"], reduction="none")
        loss = loss + (per_colour.mean(-1) * occupied).sum() / weight
        per_large = F.binary_cross_entropy_with_logits(large, cells["large"], reduction="none")
        loss = loss + (per_large.mean(-1) * occupied).sum() / weight * 0.5
        single = (cells["count"] == 1).float()
        per_offset = F.smooth_l1_loss(offset, cells["offset"], reduction="none", beta=0.1).mean(-1)
        loss = loss + (per_offset * single).sum() / single.sum().clamp(min=1) * 2
        # A tower with relative positions only would not tell the decoder where a token lies.
        place = torch.arange(image.shape[1]).expand(len(image), -1)
        columns = self.recipe.grid[1]
        for part, target in ((row, place // columns), (column, place % columns)):
            loss = loss + 0.3 * F.cross_entropy(part.flatten(0, 1), target.flatten())
        words = self.embedding.weight[self.word_ids]
        logits = F.normalize(image.float(), dim=-1) @ F.normalize(words.float(), dim=-1).T * 12
        loss = loss + 0.3 * _soft_cross_entropy(logits[..., :kinds], cells["kind"])
        return loss + 0.15 * _soft_cross_entropy(logits[..., kinds:], cells["colour"])

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One training step's losses.

        Args:
            batch: B pictures with Q questions each.

        Returns:
            Answer loss, reading loss, looking loss (scalars), and which questions were answered
            exactly right under teacher forcing, [B, Q] bool.
        """
        image = self.image_tokens(batch.pixels)
        reading = self.reading_loss(image, batch.cells)
        size, questions, longest = batch.question_ids.shape
        head = torch.tensor(self.tokens.prefix).expand(size, -1)
        prefix = self.embedding(head).to(image.dtype)
        places = torch.tensor(self.tokens.image_positions)
        prefix = prefix.index_copy(1, places, image)
        text = self.embedding(batch.question_ids.reshape(size, -1)).to(image.dtype)
        start = head.shape[1]
        length = start + questions * longest
        owner = torch.cat(
            [torch.full((start,), -1), torch.arange(questions).repeat_interleave(longest)]
        )
        order = torch.arange(length)
        visible = (order[:, None] >= order[None]) & (
            (owner[None] == -1) | (owner[:, None] == owner[None])
        )
        mask = torch.zeros(length, length).masked_fill(~visible, float("-inf"))
        positions = torch.cat(
            [torch.arange(start), torch.arange(longest).repeat(questions) + start]
        )
        hidden = self.text(
            inputs_embeds=torch.cat([prefix, text], dim=1),
            attention_mask=mask[None, None].expand(size, 1, -1, -1),
            position_ids=positions[None].expand(size, -1),
            use_cache=False,
        ).last_hidden_state[:, start:]
        labels = batch.labels.reshape(size, -1)
        wanted = labels >= 0
        logits = self.model.lm_head(hidden[wanted]).float()
        answers = F.cross_entropy(logits, labels[wanted])
        wrong = torch.zeros(labels.shape, dtype=torch.long)
        wrong[wanted] = (logits.argmax(-1) != labels[wanted]).long()
        right = wrong.reshape(size, questions, longest).sum(-1) == 0
        looking = self._looking_loss(batch, start, places, positions)
        return answers, reading, looking, right

    def blind_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy of the answers without the picture, so that blind answers are guesses.

        Args:
            batch: only its questions are used.
        """
        head = self.tokens.prefix[: self.tokens.image_positions[0]]
        ids = batch.question_ids.flatten(0, 1)
        labels = batch.labels.flatten(0, 1)
        before = torch.tensor(head).expand(len(ids), -1)
        hidden = self.text(input_ids=torch.cat([before, ids], dim=1), use_cache=False)
        wanted = labels >= 0
        logits = self.model.lm_head(hidden.last_hidden_state[:, len(head) :][wanted]).float()
        return F.cross_entropy(logits, labels[wanted])

    def _looking_loss(self, batch: Batch, start: int, places: Tensor, positions: Tensor) -> Tensor:
        """Words look at what they name (first taught layer), cues at what is asked (the others).

        In the last of several layers, cues look only at what the answer is, where it is an object.
        """
        size, questions, longest = batch.question_ids.shape
        offset = torch.arange(questions)[None] * longest
        cues = (offset + batch.cue)[..., None]  # [B, Q, 1]
        everywhere = torch.arange(questions * longest).view(1, questions, longest)
        total = torch.zeros(())
        for layer in self.recipe.cue_layers:
            if layer == self.recipe.cue_layers[0]:
                at, target = everywhere.expand(size, -1, -1), batch.words
            else:
                last = layer == self.recipe.cue_layers[-1]
                at, target = cues, (batch.answered if last else batch.about)[:, :, None]
            asked = target.sum(-1) > 0
            row, question, token = asked.nonzero(as_tuple=True)
            where = start + at[row, question, token]
            query, key = self.seen.pop(layer)
            attention = self.text.layers[layer].self_attn
            dim = attention.head_dim
            q = query[row, where].float().unflatten(-1, (-1, dim))  # [M, heads, D]
            k = key[:, places].float().unflatten(-1, (-1, dim))
            cos_q, sin_q = self.text.rotary_emb(q, positions[where][None])
            cos_k, sin_k = self.text.rotary_emb(k, positions[places][None].expand(size, -1))
            q = _turn(q, cos_q[0, :, None], sin_q[0, :, None])
            k = _turn(k, cos_k[:, :, None], sin_k[:, :, None])
            group = q.shape[1] // k.shape[2]
            for head in range(self.recipe.cue_heads):
                pick = head * group
                scores = torch.einsum("md,mnd->mn", q[:, pick], k[row, :, pick // group])
                share = (scores / math.sqrt(dim)).log_softmax(-1)
                total = total - (target[row, question, token] * share).sum(-1).mean()
        return total / (len(self.recipe.cue_layers) * self.recipe.cue_heads)


def _soft_cross_entropy(logits: Tensor, present: Tensor) -> Tensor:
    """Cross-entropy to the uniform distribution over what is present, over cells with anything."""
    count = present.sum(-1, keepdim=True)
    share = present / count.clamp(min=1)
    return -(share * logits.log_softmax(-1)).sum() / (count > 0).sum().clamp(min=1)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
