"""The rooms that the four scripts share, in the order of the data; imports run one way, downwards.

    orientations   six orientations: names, tags, pixels, how six views of a photo agree
    containers     bytes of a file → format, size, where its EXIF and XMP lie
    tags           EXIF blocks → values of tags
    packets        XMP packets, IPTC records → properties by name
    clocks         dates, offsets, the GPS clock → local time, UTC, the sun
    table          exif_data.json and .csv: columns, writer, readers, rows still valid
    sidecars       XMP sidecars and Takeout's JSON: which are a photo's, what they say
    positions      what EXIF, XMP and Takeout say of a place → position, altitude, heading
    labels         one photo's header and sidecars → its row: position, time, orientation, camera
    pictures       photos on disk: find them, open them upright
    readers        reading processes that a hostile file cannot harm
    thumbnails     small pictures of photos inside a page
    origins        what maps and features were made from: bytes of a photo, how it was turned
    downloads      named files from the network: resumed, checked, whole
    depth_weights  weights of Depth-Anything-V2: sources and names
    depth_network  Depth-Anything-V2: build it, run it on a photo
    depth_maps     depths/: where maps lie, how they are read, pictures of them
    photos         labels of all photos as arrays; the folds they are dealt into
    targets        labels ↔ what a network learns; losses
    devices        device, number format, processes of torchrun
    network        GPSPredictionNet: backbones, trunk, heads
    backbones      pretrained weights: sources, and whether they fit
    features       photos → inputs → frozen features and their cache
    baselines      errors; trivial answers and nearest neighbours, which a model must beat
    resampling     means, medians and their intervals, bootstrapped by group
    voices         neighbours, head and prior as kernels, and their stacked weights
    mixtures       mixtures of kernels as cells or draws: points and ranges
    densities      the density of every head: point, intervals, confidence, strangers
    fusing         photos of one burst or folder: their densities multiplied
    records        flat records of answers: CSV, JSON and GeoJSON
    verification   claims of photos against densities: p-values, words of evidence, a page
    products       mixtures of kernels on the sphere, and products of them
    timelines      instants on one clock, other cameras' clocks, how far one gets in a time
    metrics        errors beside baselines, with bootstrap intervals
    placing        photos without a position: time, picture, day and folder stacked
    hiding         how well that goes, where known positions are hidden
    training       steps, epochs, early stopping, resuming
    frozen         heads on frozen features: ridge starts, rehearsals, folds
    finetune       everything trained end to end
    archives       files of tensors: sealed, and read without trusting them
    checkpoint_checks  presence, type, range of every field of a checkpoint
    checkpoints    write, read, verify, resume
    sharing        models without gallery, to give away
    predictions    answers of a trained model: held-out photos, unknown photos
    library        a whole library placed, with what its pictures say, in words
    sidecar_edits  XMP sidecars written: new, extended, taken back
    write_back     estimates written beside or into copies of photos, and undone
    maps           views of places: extent, coast, scale; a table's density as picture and page
    plots          the pictures of an evaluation
    findings       what its figures say, in sentences with a verdict
    model_card     a model card beside every checkpoint
    report_data    what its page draws, as plain columns
    report         its page: cards, an interactive map, charts and a gallery
    notebook       what notebooks show: a training watched live, a photo asked about

Each room opens with what goes in and what comes out.
"""
