"""What the client asks of recipes."""

from urllib.parse import quote

from olivepress.client.transport import DEFAULT_TEAM, Json, Transport, decoded


class RecipeCalls(Transport):
    """Recipes: built in, and a team's own."""

    def recipes(self, team: str = DEFAULT_TEAM) -> list[Json]:
        """What a checkpoint can be turned into: the built-in recipes, and the newest version of each of the team's."""
        return self.list_of("/v1/recipes", team=team)

    def recipe(self, reference: str, team: str = DEFAULT_TEAM) -> Json:
        """A recipe by NAME or NAME@VERSION, in full; by its version also one that was removed.

        Raises:
            NotFound: there is none.
        """
        return self.document("GET", f"/v1/recipes/{quote(reference, safe='')}", params={"team": team})

    def add_recipe(self, keys: Json, team: str = DEFAULT_TEAM) -> Json:
        """Keep a recipe under its name; the recipe with its version, which is new where its content is.

        Raises:
            BadRecipe: it cannot be, and why.
        """
        return self.document("POST", "/v1/recipes", json=keys, params={"team": team})

    def remove_recipe(self, reference: str, team: str = DEFAULT_TEAM) -> list[Json]:
        """Offer a recipe, NAME or NAME@VERSION, no more; the versions that were removed. Jobs that use it keep it.

        Raises:
            NotFound: there is none.
            BadRecipe: it is built in.
        """
        answer = self.answer("DELETE", f"/v1/recipes/{quote(reference, safe='')}", params={"team": team})
        return decoded(answer, list[Json])
