//! One image event, several listeners.
use fullbore::prelude::*;
use std::{sync::Arc, time::Duration};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // ANCHOR: body
    let router = Router::new();
    router.subscribe("image.*").name("thumbnails").run(|image: Arc<String>| println!("thumbnail of {image}"))?;
    router.subscribe("image.*").name("search").run(|image: Arc<String>| println!("{image} is indexed"))?;
    router.subscribe("#").name("log").overflow(Overflow::DropOldest).run(|event: Arc<String>| println!("{event}"))?;
    let receipt = router.publish("image.new", "cat.jpg".to_owned())?;
    assert_eq!((receipt.matched(), receipt.accepted()), (3, 3));
    router.close_within(Duration::from_secs(5))?; // each listener has handled what it accepted
    // ANCHOR_END: body
    Ok(())
}
