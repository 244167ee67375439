"""The options of `olive auto-opt`, as far as a recipe stands for them: precision, device, execution provider. Pure."""

from olivepress.errors import BadRecipe
from olivepress.recipes.olive_config import PROVIDER_NAMES
from olivepress.recipes.recipe import BUILT_IN, ExecutionProvider, Precision, Recipe

DEVICES = {
    "cpu": (ExecutionProvider.CPU,),
    "gpu": (ExecutionProvider.CUDA, ExecutionProvider.DML, ExecutionProvider.WEBGPU),
}
# The first built-in recipe of a precision is the one to take, where nothing else is asked.
BY_PRECISION = {recipe.precision: recipe for recipe in reversed(BUILT_IN.values())}


def recipe_for(precision: str, device: str | None = None, provider: str | None = None) -> Recipe:
    """The built-in recipe for these options; without device and provider: for the CPU.

    Args:
        device: "cpu" or "gpu".
        provider: an execution provider as Olive names it, such as CPUExecutionProvider.

    Raises:
        BadRecipe: nothing stands for them; says what does.
    """
    wanted = precision.strip().lower()
    if wanted not in list(Precision):
        raise BadRecipe(f"--precision {precision} cannot be built; choose one of: {', '.join(Precision)}")
    target = _provider(device, provider)
    if target is not ExecutionProvider.CPU:
        raise BadRecipe(
            f"no built-in recipe is for {target}; take --device cpu --provider CPUExecutionProvider, or keep a recipe "
            f"of your own with 'execution_provider: {target}' (olivepress recipes add FILE) for a worker that builds it"
        )
    return BY_PRECISION[Precision(wanted)]


def _provider(device: str | None, provider: str | None) -> ExecutionProvider:
    of_device = _of_device(device)
    if provider is None:
        if len(of_device) > 1 and device is not None:
            names = ", ".join(name for name, target in PROVIDER_NAMES.items() if target in of_device)
            raise BadRecipe(f"--device {device} leaves open which provider; add --provider with one of: {names}")
        return of_device[0]
    known = {name.lower(): target for name, target in PROVIDER_NAMES.items()} | {
        one.value: one for one in ExecutionProvider
    }
    target = known.get(provider.strip().lower())
    if target is None:
        raise BadRecipe(f"--provider {provider} is not known; choose one of: {', '.join(PROVIDER_NAMES)}")
    if device is not None and target not in of_device:
        raise BadRecipe(f"--provider {provider} does not run on --device {device}; leave one of them out")
    return target


def _of_device(device: str | None) -> tuple[ExecutionProvider, ...]:
    if device is None:
        return (ExecutionProvider.CPU,)
    found = DEVICES.get(device.strip().lower())
    if found is None:
        raise BadRecipe(f"--device {device} is not known; choose one of: {', '.join(DEVICES)}")
    return found
