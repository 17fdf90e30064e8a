//! Ports for containers: each is given to one container at a time, from a range that the kernel gives to nobody by itself, so
//! that what listens there is the container that it was given to.

use capstan_common::worker::PORTS;
use std::{
    cell::RefCell,
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
    rc::Rc,
};

const FIRST: u16 = *PORTS.start();
const LAST: u16 = *PORTS.end();

#[derive(Debug, Default)]
struct Taken {
    ports: BTreeSet<u16>,
    next: u16,
}

/// All ports of a worker; a clone is another handle.
#[derive(Debug, Clone, Default)]
pub struct Ports(Rc<RefCell<Taken>>);

/// A port that is given out; given back when dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    of: Rc<RefCell<Taken>>,
}

impl Port {
    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.of.borrow_mut().ports.remove(&self.number);
    }
}

impl Ports {
    /// Begins somewhere in the range, so that workers on one machine rarely try the same ports.
    pub fn new() -> Self {
        let next = FIRST + (std::process::id() * 97 % u32::from(LAST - FIRST)) as u16;
        Self(Rc::new(RefCell::new(Taken { ports: BTreeSet::new(), next })))
    }

    /// A port that no container of this worker has and nobody listens on.
    pub fn take(&self) -> Port {
        let mut taken = self.0.borrow_mut();
        for _ in FIRST..LAST {
            let number = taken.next.clamp(FIRST, LAST);
            taken.next = if number == LAST { FIRST } else { number + 1 };
            let free = !taken.ports.contains(&number) && TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok();
            if free {
                taken.ports.insert(number);
                return Port { number, of: self.0.clone() };
            }
        }
        // Twelve thousand containers: the kernel may still know a port.
        let drawn = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let number = drawn.map_or(0, |address| address.port());
        taken.ports.insert(number);
        Port { number, of: self.0.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_port_is_given_twice_or_while_somebody_listens_there() {
        let ports = Ports::new();
        let held: Vec<Port> = (0..200).map(|_| ports.take()).collect();
        let numbers: BTreeSet<u16> = held.iter().map(Port::number).collect();
        assert_eq!(numbers.len(), 200);
        let next = ports.take().number() + 1;
        let _listener = TcpListener::bind((Ipv4Addr::LOCALHOST, next));
        assert_ne!(ports.take().number(), next);
        drop(held);
        assert!(ports.0.borrow().ports.is_empty());
    }
}
