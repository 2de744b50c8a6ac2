//! Names, folders and the port inside of a session's pod.

/// Port of every engine.
pub(super) const PORT: u16 = 15002;
/// Name of the engine's container.
pub(super) const CONTAINER: &str = "engine";
/// Folder of the session, an empty volume.
pub(super) const HOME: &str = "/berth";
/// Folder with the files of the Secret.
pub(super) const SECRET_DIR: &str = "/etc/berth-session";
/// Name of the volume of the session.
pub(super) const SESSION_VOLUME: &str = "session";
/// Name of the volume with the files of the Secret.
pub(super) const SECRET_VOLUME: &str = "secret";
