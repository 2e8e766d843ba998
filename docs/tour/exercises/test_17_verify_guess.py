import torch

from docs.tour.exercises.verify_guess import verify_guess


def test_worked_example_of_the_page():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    chance, rest = verify_guess(1, p, q)
    assert abs(chance - 0.6) < 1e-6 and rest.tolist() == [1.0, 0.0, 0.0]
    assert verify_guess(0, p, q)[0] == 1.0


def test_property_guesses_leave_the_model_s_own_distribution():
    p, q = torch.rand(2, 6).softmax(-1)
    total = torch.zeros(6)
    for guess in range(6):
        chance, rest = verify_guess(guess, p, q)
        total[guess] += q[guess] * chance
        total += q[guess] * (1 - chance) * rest
    torch.testing.assert_close(total, p)


def test_property_where_both_are_the_same_every_guess_is_kept():
    p = torch.tensor([0.25, 0.75])
    chance, rest = verify_guess(0, p, p)
    assert chance == 1.0 and torch.equal(rest, p)
