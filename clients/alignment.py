"""Make the domains of a federation alike in training: a domain classifier, and an encoder that is moved against it.

    losses = losses + training.align_weight * domain_losses(classifier, represented, weight, own)

A linear classifier of domains reads what the last layer of the backbone reads. It is moved to tell domains apart; the
gradient that comes back from it changes its sign, so the encoder is moved to make that harder (DANN). The classifier
starts at zero: it moves nothing until it knows something.

No domain has users of another, so the classifier is a shared parameter like any other. Each domain pushes it towards
its own label, which is public: its place in the recipe's list. The mean over domains of a first step is then the
gradient that a classifier would have on all users in one place; with every further step of a round it is less so,
because a domain alone would only learn to say its own name (FedMM is about clients that see a part of the labels).

Guarantees:
    - A user's gradient of classifier and backbone is one vector, clipped to C as a whole: the classifier has no budget,
      no noise and no release of its own, and the ledger charges what it charges without it.
    - Nothing of a user besides that gradient is looked at. FADA gives a discriminator the representations of each
      domain's examples: a release without a bound and without noise, which is not done here.

References: Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 2016 (DANN, equations 13 to 15; the
linear classifier of section 4.1); Peng, Huang, Zhu and Saenko, "Federated Adversarial Domain Adaptation", ICLR 2020
(FADA); Shen et al., "FedMM: Saddle Point Optimization for Federated Adversarial Domain Adaptation", 2021.
"""

from torch import Tensor, nn
from torch.nn import functional

from isthmus.config import TrainingConfig
from isthmus.errors import Refused


def reversed_gradient(x: Tensor) -> Tensor:
    """The same finite values, to the bit; the gradient that comes back through them has the other sign."""
    return 2 * x.detach() - x


def domain_losses(classifier: nn.Linear, represented: Tensor, weight: Tensor, own: int) -> Tensor:
    """Cross-entropy of each user's domain, over the user's positions.

    Args:
        classifier: From width to domains.
        represented: (users, positions, width) what the last layer reads; its gradient comes back reversed.
        weight: (users, positions) share of each position in its user's loss.
        own: Label of the domain that all of them are users of.

    Returns:
        (users,); user i's entry depends on no other user, and is 0 for a user with nothing to learn from.
    """
    logits = classifier(reversed_gradient(represented))  # (users, positions, domains)
    loss = -functional.log_softmax(logits, dim=-1)[..., own]
    return (loss * weight.to(loss.dtype)).sum(dim=1)


def own_label(training: TrainingConfig, name: str) -> int | None:
    """Label of a domain: its place in the recipe's list; None where domains are not aligned.

    Raises:
        Refused: If the list does not have it.
    """
    if training.align_domains is None:
        return None
    if name not in training.align_domains:
        raise Refused(
            f"`training.align_domains` of the federation file has no domain {name!r}, only "
            f"{', '.join(training.align_domains)}; a domain that takes part must be in it"
        )
    return training.align_domains.index(name)
