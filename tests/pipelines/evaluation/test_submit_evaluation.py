"""An evaluation's job is named by all that it is, its root too, and mistakes are told before there is one."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dualtoken.infra.ray_jobs import ClusterUnreachable
from dualtoken.pipelines.config.evaluation import EvaluationConfig
from dualtoken.pipelines.errors import UserError
from dualtoken.pipelines.evaluation.submit_evaluation import submit_evaluation
from tests.helpers.evaluated import canary, config_of

NOBODY = "http://127.0.0.1:9"
SETS = {"few": {"kind": "scenes", "num_images": 2}}


def config_for(root: Path, **protocol: object) -> EvaluationConfig:
    return config_of(root, SETS, {"p": {"metrics": ["psnr"]} | protocol})


def test_each_root_has_a_job_of_its_own(tmp_path: Path) -> None:
    model = canary(tmp_path)
    names: list[str] = []
    for root in (tmp_path / "a", tmp_path / "b", tmp_path / "a"):
        with pytest.raises(ClusterUnreachable):
            submit_evaluation(config_for(root), model, NOBODY, lambda _: None)
        (record,) = (root / "submitted").iterdir()  # kept before the cluster is asked
        names.append(record.stem)
    first, other, again = names
    assert first.startswith("dualtoken-evaluate-test-")
    assert other != first
    assert again == first


def test_a_network_that_does_not_fit_is_told_before_a_job(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    file = str(tmp_path / "weights.safetensors")
    features = {"kind": "timm", "model": "test_vitt", "file": file, "image_size": 32}
    config = config_for(tmp_path / "root", metrics=["fd"], features=features)
    with pytest.raises(UserError, match="test_vitt is unknown to timm"):
        submit_evaluation(config, canary(tmp_path), NOBODY, lambda _: None)
    assert not (tmp_path / "root/submitted").exists()
