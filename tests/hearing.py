"""Speech of tones, and a stand-in for the model that understands it: what long recordings become can be checked word by word."""

import numpy as np
import torch


RATE = 16000
TONES = [300.0 * 1.22**index for index in range(16)]  # a digit to base 16 each
TONE, PAUSE = 0.15, 0.25  # seconds; a word is two tones, and a pause follows


def word(number: int) -> np.ndarray:
    time = np.arange(int(TONE * RATE)) / RATE
    digits = divmod(number, 16)
    return np.concatenate([0.3 * np.sin(2 * np.pi * TONES[digit] * time) for digit in digits]).astype(np.float32)


def speech(count: int, pause: float = PAUSE) -> np.ndarray:
    """`count` words, numbered from 0, in faint noise."""
    silence = np.zeros(int(pause * RATE), dtype=np.float32)
    clean = np.concatenate([part for number in range(count) for part in (silence, word(number))] + [silence])
    return clean + 1e-4 * np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)


def times(count: int, pause: float = PAUSE) -> list[tuple[float, float]]:
    """When each of the words of `speech` begins and ends."""
    step = pause + 2 * TONE
    return [(round(pause + index * step, 3), round((index + 1) * step, 3)) for index in range(count)]


def understood(features: torch.Tensor) -> list[tuple[float, int, float]]:
    """Start, number and end of the words in log-mel features `(mels, frames)`; a word that is cut in two is none."""
    centres = _tone_bins()
    energy = features[centres]  # (16, frames)
    loud = energy.amax(dim=0) > features.max() - 0.5
    digits, words, start = energy.argmax(dim=0).tolist(), [], None
    for frame, speaking in enumerate([*loud.tolist(), False]):
        if speaking and start is None:
            start = frame
        if not speaking and start is not None:
            heard = digits[start:frame]
            if len(heard) > 25:
                first, second = heard[len(heard) // 4], heard[3 * len(heard) // 4]
                words.append((start / 100, 16 * first + second, frame / 100))
            else:
                words.append((start / 100, -1, frame / 100))  # a part of one
            start = None
    return words


def _tone_bins() -> list[int]:
    from moss_audio.processing_moss_audio import _mel_filters

    frequencies = np.linspace(0, RATE / 2, 201)
    filters = _mel_filters(128, 400, RATE).numpy()
    return [int(filters[:, np.abs(frequencies - tone).argmin()].argmax()) for tone in TONES]


class Listener:
    """`generate` of a model that transcribes such speech, and takes down what it was given."""

    def __init__(self, processor, answer=None):
        self.processor, self.batches = processor, []
        self.answer = answer or (
            lambda words: "".join(f"[{start:.2f}]w{number}[{end:.2f}]" for start, number, end in words)
        )

    def __call__(self, input_ids, audio_data=None, audio_data_seqlens=None, **kwargs):
        self.batches.append([length / 100 for length in audio_data_seqlens.tolist()])
        texts = [
            self.answer(understood(clip[:, :length])) for clip, length in zip(audio_data, audio_data_seqlens.tolist())
        ]
        rows = [self.processor.tokenizer(text + "<|im_end|>")["input_ids"] for text in texts]
        longest = max(map(len, rows))
        padding = self.processor.tokenizer.pad_token_id
        new = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
        return torch.cat((input_ids, new), dim=1)

    @property
    def seconds(self):
        return [length for batch in self.batches for length in batch]
