import { api } from "../api/client.ts";
import type { Session } from "../api/types.ts";
import { errorText, notify } from "../state/notices.ts";

/** Starts the compute of an idle session before the next query does. */
export async function warm(session: Session, put: (session: Session) => void): Promise<void> {
  try {
    put(await api.post<Session>(`sessions/${session.id}:warm`));
    notify("done", "The session is waking up.");
  } catch (error) {
    notify("error", errorText(error));
  }
}
