"""How long something will wait: what hangs is seen while it hangs, and nobody is refused for what is over."""

from __future__ import annotations

from policyd.services.forecast import Forecast


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def batch(forecast: Forecast, clock: Clock, took_s: float) -> None:
    forecast.begun()
    clock.now_s += took_s
    assert abs(forecast.ended() - took_s) < 1e-9


def test_a_batch_that_hangs_is_seen_while_it_hangs() -> None:
    clock = Clock()
    forecast = Forecast(clock)
    assert forecast.wait_ms(1) == 0
    forecast.begun()
    clock.now_s += 3
    assert forecast.wait_ms(1) == 3_000
    assert forecast.wait_ms(9) == 3_000, "nothing is known yet of how long the others take"


def test_the_batches_ahead_count() -> None:
    clock = Clock()
    forecast = Forecast(clock)
    for _ in range(40):
        batch(forecast, clock, 0.1)
    forecast.begun()
    assert 990 < forecast.wait_ms(9) < 1_001


def test_a_slow_time_is_forgotten_and_refuses_nobody_when_it_is_over() -> None:
    clock = Clock()
    forecast = Forecast(clock)
    batch(forecast, clock, 20)
    assert forecast.wait_ms(1) == 0, "nothing is under way: somebody must try"
    for _ in range(10):
        batch(forecast, clock, 0.005)
    forecast.begun()
    assert forecast.wait_ms(1) < 1_000
