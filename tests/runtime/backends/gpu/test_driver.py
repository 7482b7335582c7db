"""Without a GPU, or with one that gives no context, the reason is told."""

from __future__ import annotations

import pytest

from gptexport_runtime import BackendUnavailableError
from gptexport_runtime.backends.gpu import driver
from gptexport_runtime.backends.gpu.driver import Driver, load_driver
from tests.support.fake_driver import FakeLibrary


def test_without_a_gpu_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "open_driver", lambda: (None, "there is no NVIDIA driver: none."))
    with pytest.raises(BackendUnavailableError, match="there is no NVIDIA driver: none"):
        load_driver()


def test_gpu_that_gives_no_context_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeLibrary()
    monkeypatch.setattr(driver, "open_driver", lambda: (library, None))
    assert isinstance(load_driver(), Driver)
    monkeypatch.setattr(FakeLibrary, "_cuDevicePrimaryCtxRetain", lambda self, context, device: 2)
    monkeypatch.setattr(driver, "open_driver", lambda: (FakeLibrary(), None))
    with pytest.raises(BackendUnavailableError, match=r"gives no context on its GPU: cuDevicePrimaryCtxRetain failed"):
        load_driver()
