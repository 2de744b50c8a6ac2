// Catalogs: named references to data.
import { api } from "../api/client.ts";
import type { Catalog } from "../api/types.ts";
import { engineName } from "../format.ts";
import { mayWriteCatalogs } from "../state/auth.ts";
import { useLoad } from "../state/load.ts";
import { Empty, Failure, Link, Loading, PageHeading, Table } from "../ui/basics.tsx";

export async function allCatalogs(signal: AbortSignal): Promise<Catalog[]> {
  const found: Catalog[] = [];
  let token = "";
  do {
    const page = await api.get<{ catalogs: Catalog[]; next_page_token: string }>("catalogs", { signal, query: { page_size: "1000", page_token: token } });
    found.push(...page.catalogs);
    token = page.next_page_token;
  } while (token !== "");
  return found;
}

export function CatalogsPage() {
  const [catalogs, reload] = useLoad("catalogs", allCatalogs);
  return (
    <>
      <PageHeading title="Catalogs">
        {mayWriteCatalogs() ? (
          <Link class="button primary" to="new-catalog">
            Create catalog
          </Link>
        ) : null}
      </PageHeading>
      {catalogs.state === "loading" ? <Loading what="catalogs" /> : null}
      {catalogs.state === "error" ? <Failure error={catalogs.error} what="the catalogs" retry={reload} /> : null}
      {catalogs.state === "ready" && catalogs.data.length === 0 ? (
        <Empty icon="catalogs" title="No catalogs">
          A catalog names data that sessions start with. An admin of your organization creates one here or with <code>berth catalog create</code>; sessions also work without.
        </Empty>
      ) : null}
      {catalogs.state === "ready" && catalogs.data.length > 0 ? (
        <Table label="Catalogs" head={["Name", "Engine", "Default database", "Open to"].map((name) => <th scope="col">{name}</th>)}>
          {catalogs.data.map((catalog) => (
            <tr key={catalog.name}>
              <td>
                <Link class="row-name" to={`catalogs/${encodeURIComponent(catalog.name)}`}>
                  {catalog.name}
                </Link>
              </td>
              <td>{engineName(catalog.engine)}</td>
              <td>{catalog.default_database || <span class="muted">default of the engine</span>}</td>
              <td>{catalog.allowed_teams.join(", ") || <span class="muted">everybody in {catalog.org}</span>}</td>
            </tr>
          ))}
        </Table>
      ) : null}
    </>
  );
}
