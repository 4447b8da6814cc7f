"""The baseline without a Whisper: a linear probe on the mean and deviation of each log-mel band."""

import numpy as np
import torch
from torch.utils.data import DataLoader

from whispertag.audio import log_mel
from whispertag.data.module import ClipData
from whispertag.training.metrics import Score, score

N_MELS = 80


def logmel_probe(clips: ClipData, regularisation: float = 0.1) -> Score:
    """Logistic regression (one against the rest for multi-label data), trained and scored on the
    same clips as a head; `regularisation` is scikit-learn's C.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    train_NX, train_NC = _statistics(clips.train_dataloader())
    val_NX, val_NC = _statistics(clips.val_dataloader())
    regression = LogisticRegression(C=regularisation, max_iter=1000)
    if clips.task == "multiclass":
        probe = make_pipeline(StandardScaler(), regression)
        seen = train_NC.any(0)
        scores_NX = probe.fit(train_NX, train_NC.argmax(1)).predict_log_proba(val_NX)
    else:
        probe = make_pipeline(StandardScaler(), OneVsRestClassifier(regression))
        # A class that no training clip has, or every one, leaves nothing to fit.
        seen = train_NC.any(0) & ~train_NC.all(0)
        scores_NX = probe.fit(train_NX, train_NC[:, seen]).decision_function(val_NX)
    logits_NC = np.full(val_NC.shape, -100.0)
    logits_NC[:, seen] = scores_NX.reshape(len(val_NX), -1)
    return score(torch.from_numpy(logits_NC), torch.from_numpy(val_NC), clips.classes, clips.task)


def _statistics(loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """→ mean and deviation over time (clips × 160), labels (clips × C)."""
    features, labels = [], []
    for batch in loader:
        mel_BMF = log_mel(batch["wave_BS"], N_MELS)
        features.append(torch.cat([mel_BMF.mean(-1), mel_BMF.std(-1)], dim=1).numpy())
        labels.append(batch["labels_BC"].numpy().astype(int))
    return np.concatenate(features), np.concatenate(labels)
