//! The server and the client, over real sockets; see the modules in `it/`.

#[cfg(test)]
mod it {
    mod budget;
    mod connection;
    mod differential;
    mod handshake;
    mod hostile_server;
    mod ram;
    mod raw;
    mod rig;
    mod server;
    mod tools;
}
